"""AWS Signature Version 4 over the final bytes, with credentials from the deployment or AWS's own chain (environment,
profile, IRSA web identity, pod identity, instance role), which renews them.
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html
"""

from __future__ import annotations

import asyncio
from typing import Any

from sidecar.errors import UpstreamCredentialError
from sidecar.types import Deployment, Headers
from sidecar.upstream.auth.base import missing
from sidecar.upstream.base import HttpRequest

_BIG_BODY = 1_000_000


class AwsAuthorizer:
    """`service` is the name that is signed: `bedrock`, `sagemaker`."""

    def __init__(self, deployment: Deployment, service: str) -> None:
        self._options = deployment.options
        self._credentials_given = deployment.credentials
        self._service = service
        self._region = deployment.options["region"]
        self._credentials: Any = None
        self._loading: asyncio.Lock | None = None

    async def headers(self, request: HttpRequest) -> Headers:
        frozen = await self._frozen()
        if len(request.body) > _BIG_BODY:  # its hash takes longer than a loop may stand still
            return await asyncio.to_thread(self._sign, frozen, request)
        return self._sign(frozen, request)

    async def _frozen(self) -> Any:
        if self._loading is None:
            self._loading = asyncio.Lock()
        credentials = self._credentials
        if credentials is None or credentials.refresh_needed():
            async with self._loading:
                try:
                    return await asyncio.wait_for(asyncio.to_thread(self._load), 15.0)
                except UpstreamCredentialError:
                    raise
                except Exception as error:  # noqa: BLE001
                    # botocore raises what it likes; its text may hold a secret, so only the type is told.
                    raise UpstreamCredentialError(f"No AWS credentials now ({type(error).__name__}).") from None
        return credentials.get_frozen_credentials()

    def _load(self) -> Any:
        if self._credentials is None:
            self._credentials = self._chain()
        return self._credentials.get_frozen_credentials()

    def _chain(self) -> Any:
        try:
            from botocore.credentials import Credentials, RefreshableCredentials
            from botocore.session import Session
        except ImportError:
            raise missing("aws", "botocore") from None
        given = self._credentials_given
        session = Session(profile=self._options.get("aws_profile"))
        if "aws_access_key_id" in given:
            token = given.get("aws_session_token")
            found: Any = Credentials(
                given["aws_access_key_id"].reveal(),
                given["aws_secret_access_key"].reveal(),
                token.reveal() if token is not None else None,
            )
        else:
            found = session.get_credentials()
        if found is None:
            raise UpstreamCredentialError(
                "The gateway found no AWS credentials: give the deployment aws_access_key_id and "
                "aws_secret_access_key, or run the gateway with a role."
            )
        role = self._options.get("aws_role_arn")
        if role is not None:
            base = found.get_frozen_credentials()

            def assume() -> dict[str, str]:
                client = session.create_client(
                    "sts",
                    region_name=self._region,
                    aws_access_key_id=base.access_key,
                    aws_secret_access_key=base.secret_key,
                    aws_session_token=base.token,
                )
                answer = client.assume_role(RoleArn=role, RoleSessionName="sidecar")["Credentials"]
                return {
                    "access_key": answer["AccessKeyId"],
                    "secret_key": answer["SecretAccessKey"],
                    "token": answer["SessionToken"],
                    "expiry_time": answer["Expiration"].isoformat(),
                }

            found = RefreshableCredentials.create_from_metadata(assume(), assume, "assume-role")
        if not hasattr(found, "refresh_needed"):
            found.refresh_needed = lambda: False  # fixed ones never change
        return found

    def _sign(self, frozen: Any, request: HttpRequest) -> Headers:
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest

        is_default = request.port == (443 if request.scheme == "https" else 80)
        host = request.host if is_default else f"{request.host}:{request.port}"
        signed = AWSRequest(
            request.method, f"{request.scheme}://{host}{request.target.decode('ascii')}", None, request.body
        )
        SigV4Auth(frozen, self._service, self._region).add_auth(signed)
        return [(name.lower().encode("ascii"), value.encode("ascii")) for name, value in signed.headers.items()]

    async def aclose(self) -> None:
        return None
