"""Credentials that are more than one header: signatures over the final bytes, and tokens that expire. One file each.

The proxy asks last, with the request exactly as it goes out. What a vendor's own library does is left to it (botocore,
google-auth, azure-identity: the extras `aws`, `google`, `azure`), in a thread, for they wait on files and networks.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from sidecar.translate.provider import Provider
from sidecar.types import Deployment, Headers, Secret
from sidecar.upstream.auth.base import Authorizer

__all__ = ["Authorizer", "auth_of", "make_authorizer", "static_headers"]


def auth_of(deployment: Deployment, provider: Provider) -> str:
    """How the key travels. IBM Cloud's is exchanged for a token at IBM Cloud alone; elsewhere (Cloud Pak for Data, a
    server of one's own) it is a token already, and no business of IBM's."""
    if provider.auth != "ibm":
        return provider.auth
    host = (urlsplit(deployment.base_url).hostname or "").lower()
    return "ibm" if host.endswith(".ibm.com") else "bearer"


def static_headers(auth: str, key: Secret | None) -> Headers:
    """What a plain API key is on the wire."""
    if not key or auth in ("none", "ibm"):
        return []
    value = key.reveal().encode("latin-1")
    if auth == "bearer":
        return [(b"authorization", b"Bearer " + value)]
    return [(auth.encode("ascii"), value)]


def make_authorizer(deployment: Deployment, provider: Provider) -> Authorizer | None:
    """`None`: the deployment's own key, or nothing, is all there is. Imports the vendor's library at the first request
    that needs it."""
    if deployment.api_key:
        if auth_of(deployment, provider) == "ibm":
            from sidecar.upstream.auth.oauth import ibm

            return ibm(deployment)
        return None
    if provider.keyless == "aws":
        from sidecar.upstream.auth.aws import AwsAuthorizer

        return AwsAuthorizer(deployment, provider.service)
    if provider.keyless == "google":
        from sidecar.upstream.auth.google import google

        return google(deployment)
    if provider.keyless == "azure":
        from sidecar.upstream.auth.azure import azure

        return azure(deployment, provider.service)
    if provider.keyless == "databricks":
        from sidecar.upstream.auth.oauth import databricks

        return databricks(deployment)
    return None
