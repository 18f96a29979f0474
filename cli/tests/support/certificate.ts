/** A certificate that nobody signed but itself, for a server of a test. */
import { Buffer } from "node:buffer";
import { generateKeyPairSync, randomBytes, sign } from "node:crypto";

/** One value of DER: what it is, how long, and what is in it. */
function der(tag: number, ...parts: (Uint8Array | number[])[]): Buffer {
  const body = Buffer.concat(parts.map((part) => Uint8Array.from(part)));
  const length = body.length < 128
    ? [body.length]
    : body.length < 256
    ? [0x81, body.length]
    : [0x82, body.length >> 8, body.length & 255];
  return Buffer.concat([Uint8Array.from([tag, ...length]), body]);
}

const SEQUENCE = 0x30;
const text = (value: string) => new TextEncoder().encode(value);
/** ecdsa-with-SHA256, 1.2.840.10045.4.3.2 */
const ALGORITHM = der(
  SEQUENCE,
  der(6, [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02]),
);

/** A key and its certificate for `host`, in PEM. */
export function certificateFor(host: string): { key: string; cert: string } {
  const { privateKey, publicKey } = generateKeyPairSync("ec", {
    namedCurve: "P-256",
  });
  const commonName = der(SEQUENCE, der(6, [0x55, 4, 3]), der(12, text(host)));
  const name = der(SEQUENCE, der(0x31, commonName));
  const years = der(
    SEQUENCE,
    der(23, text("200101000000Z")),
    der(23, text("491231235959Z")),
  );
  const names = der(SEQUENCE, der(0x82, text(host)));
  const extensions = der(
    SEQUENCE,
    // Subject alternative name, and that it may sign: itself.
    der(SEQUENCE, der(6, [0x55, 0x1d, 0x11]), der(4, names)),
    der(
      SEQUENCE,
      der(6, [0x55, 0x1d, 0x13]),
      der(1, [255]),
      der(4, der(SEQUENCE, der(1, [255]))),
    ),
  );
  const body = der(
    SEQUENCE,
    der(0xa0, der(2, [2])),
    der(2, [1, ...randomBytes(8)]),
    ALGORITHM,
    name,
    years,
    name,
    publicKey.export({ type: "spki", format: "der" }),
    der(0xa3, extensions),
  );
  const signature = sign("sha256", body, privateKey);
  const whole = der(SEQUENCE, body, ALGORITHM, der(3, [0], signature));
  const lines = whole.toString("base64").match(/.{1,64}/g)!.join("\n");
  return {
    key: String(privateKey.export({ type: "pkcs8", format: "pem" })),
    cert: `-----BEGIN CERTIFICATE-----\n${lines}\n-----END CERTIFICATE-----\n`,
  };
}
