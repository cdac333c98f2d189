"""Tokens of identity providers: JWTs checked against published keys, opaque tokens by introspection.

Read `tokens.py` first: `TokenIssuers.identify` is a token's way. `issuers.py` says what is trusted, `jose.py` reads a
token without trusting it, `jwks.py` keeps an issuer's keys, `verify.py` and `introspect.py` decide, `claims.py` says
what a genuine token means here. Loaded only when an issuer is configured: `jwt` and `cryptography` are not light.
"""
