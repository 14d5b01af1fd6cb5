// The checks of .ci/jwt with node's jose. Arguments: the library, the server's URL, the algorithm, a token.
const [library, url, algorithm, token] = process.argv.slice(2);
const { createRemoteJWKSet, jwtVerify, base64url, SignJWT } = await import(library);

const keys = createRemoteJWKSet(new URL('/.well-known/jwks.json', url));
const options = { algorithms: [algorithm], issuer: 'https://api.example.com', audience: 'example', typ: 'dc-session+jwt' };
const { payload } = await jwtVerify(token, keys, options);
if (payload.env !== 'production' || payload.evidence !== 'device-check') throw new Error(JSON.stringify(payload));

const encode = (value) => base64url.encode(JSON.stringify(value));
const [header, claims, signature] = token.split('.');
const head = JSON.parse(Buffer.from(header, 'base64url'));
const changed = encode({ ...payload, exp: payload.exp + 3600 });
const secret = new TextEncoder().encode('0123456789abcdef0123456789abcdef');
const forgeries = {
  'a changed claim': `${header}.${changed}.${signature}`,
  none: `${encode({ ...head, alg: 'none' })}.${claims}.`,
  'none, with the signature': `${encode({ ...head, alg: 'none' })}.${claims}.${signature}`,
  HS256: await new SignJWT(payload).setProtectedHeader({ ...head, alg: 'HS256' }).sign(secret),
};
for (const [name, forged] of Object.entries(forgeries)) {
  const accepted = await jwtVerify(forged, keys, options).then(() => true, () => false);
  if (accepted) throw new Error(`jose accepts ${name}`);
}
for (const wrong of [{ audience: 'other' }, { issuer: 'https://other.example' }, { algorithms: ['RS256'] }]) {
  const accepted = await jwtVerify(token, keys, { ...options, ...wrong }).then(() => true, () => false);
  if (accepted) throw new Error(`jose accepts ${JSON.stringify(wrong)}`);
}
console.log(`jose: verifies the token, and refuses ${Object.keys(forgeries).length} forgeries`);
