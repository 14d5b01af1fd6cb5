"""The checks of .ci/jwt with PyJWT. Arguments: the server's URL (or --forgeries, which prints them for nginx), the
algorithm, a token."""

import base64
import json
import sys

import jwt

url, algorithm, token = sys.argv[1:]


def encode(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


header, claims, signature = token.split(".")
head = jwt.get_unverified_header(token)
payload = jwt.decode(token, options={"verify_signature": False})
longer = encode({**payload, "exp": payload["exp"] + 3600})
none = encode({**head, "alg": "none"})
forgeries = {
    "a changed claim": f"{header}.{longer}.{signature}",
    "none": f"{none}.{claims}.",
    "none, with the signature": f"{none}.{claims}.{signature}",
    "HS256": jwt.encode(payload, "0123456789abcdef0123456789abcdef", "HS256", headers=head | {"alg": "HS256"}),
}
if url == "--forgeries":
    print("200", "the token", token, sep="\t")
    for name, forged in forgeries.items():
        print("401", name, forged, sep="\t")
    sys.exit()


def verify(text, audience="example", algorithms=(algorithm,)):
    key = jwt.PyJWKClient(f"{url}/.well-known/jwks.json").get_signing_key_from_jwt(text)
    return jwt.decode(
        text, key, algorithms=list(algorithms), audience=audience, issuer="https://api.example.com"
    )


assert verify(token)["evidence"] == "device-check"
for name, forged in forgeries.items():
    try:
        verify(forged)
    except jwt.InvalidTokenError:
        continue
    sys.exit(f"PyJWT accepts {name}")
for arguments in [{"audience": "other"}, {"algorithms": ["RS256"]}]:
    try:
        verify(token, **arguments)
    except jwt.InvalidTokenError:
        continue
    sys.exit(f"PyJWT accepts {arguments}")
print(f"PyJWT: verifies the token, and refuses {len(forgeries)} forgeries")
