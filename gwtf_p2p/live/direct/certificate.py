"""Certificates that say which libp2p peer speaks (libp2p's specs/tls).

The certificate's own key is new for each process. An extension (OID 1.3.6.1.4.1.53594.1.1) holds the peer's public key and its
signature over the certificate's key:

    SEQUENCE {
        OCTET STRING  protobuf of the peer's public key
        OCTET STRING  signature of "libp2p-tls-handshake:" . SubjectPublicKeyInfo
    }

So who can speak TLS with this certificate is who has the peer's key. p2pd takes what is made here, and the other way round.
"""

from __future__ import annotations

import datetime
import ssl
import tempfile
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding

from gwtf_p2p.live.libp2p.identity import Identity, pack_public, peer_id_of_public, unpack_public
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId

MOST_BYTES = 4096
"""Of a certificate: one of a key with 4096 bits takes 1,500."""

_EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
_PREFIX = b"libp2p-tls-handshake:"
_SEQUENCE, _OCTETS = 0x30, 0x04
_FROM, _UNTIL = datetime.datetime(2000, 1, 1), datetime.datetime(2200, 1, 1)
"""Clocks of peers may be wrong by years."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """One's own: `der` is shown to others, `pem` holds its key as well."""

    der: bytes
    pem: bytes


def make_certificate(identity: Identity) -> Certificate:
    """A new one, for as long as this process runs."""
    key = ec.generate_private_key(ec.SECP256R1())
    signature = identity.key.sign(_PREFIX + _spki(key.public_key()), padding.PKCS1v15(), hashes.SHA256())
    body = _octets(pack_public(identity.key.public_key())) + _octets(signature)
    extension = x509.UnrecognizedExtension(_EXTENSION, bytes([_SEQUENCE]) + _length(len(body)) + body)
    nobody = x509.Name([])
    made = (
        x509.CertificateBuilder()
        .subject_name(nobody)
        .issuer_name(nobody)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_FROM)
        .not_valid_after(_UNTIL)
        .add_extension(extension, critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    public = made.public_bytes(serialization.Encoding.PEM)
    return Certificate(made.public_bytes(serialization.Encoding.DER), private + public)


def peer_of(der: bytes) -> PeerId:
    """Whose certificate it is. Raises RemoteProtocolError when it proves nothing."""
    if len(der) > MOST_BYTES:
        raise RemoteProtocolError(f"certificate: {len(der)} bytes, expected at most {MOST_BYTES}")
    try:
        certificate = x509.load_der_x509_certificate(der)
        extension = certificate.extensions.get_extension_for_oid(_EXTENSION).value
        if not isinstance(extension, x509.UnrecognizedExtension):
            raise ValueError("the extension is not libp2p's")
        packed, signature = _pair(extension.value)
        peer_key, key = unpack_public(packed), certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("expected a key on a curve")
        certificate.verify_directly_issued_by(certificate)
        peer_key.verify(signature, _PREFIX + _spki(key), padding.PKCS1v15(), hashes.SHA256())
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound) as error:
        raise RemoteProtocolError(f"certificate: {str(error) or type(error).__name__}") from error
    return peer_id_of_public(peer_key)


def context_for(own: Certificate, other: bytes, *, is_server: bool) -> ssl.SSLContext:
    """TLS 1.3 with whoever shows this certificate, and nobody else. Raises RemoteProtocolError when OpenSSL cannot read it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if is_server:
        context.num_tickets = 0
    with tempfile.NamedTemporaryFile(prefix="gwtf-", suffix=".pem") as file:  # private; OpenSSL reads keys from files alone
        file.write(own.pem)
        file.flush()
        context.load_cert_chain(file.name)
    try:
        context.load_verify_locations(cadata=other)
    except ssl.SSLError as error:
        raise RemoteProtocolError(f"certificate: {error.reason}") from error
    return context


def _spki(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _length(count: int) -> bytes:
    if count < 0x80:
        return bytes([count])
    packed = count.to_bytes((count.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(packed)]) + packed


def _octets(value: bytes) -> bytes:
    return bytes([_OCTETS]) + _length(len(value)) + value


def _pair(der: bytes) -> tuple[bytes, bytes]:
    """The two strings of the extension. Raises ValueError."""
    body, end = _read(der, 0, _SEQUENCE)
    first, at = _read(body, 0, _OCTETS)
    second, at = _read(body, at, _OCTETS)
    if end != len(der) or at != len(body):
        raise ValueError("more than a key and a signature")
    return first, second


def _read(der: bytes, at: int, tag: int) -> tuple[bytes, int]:
    """One value and where it ends. Raises ValueError."""
    if len(der) < at + 2 or der[at] != tag:
        raise ValueError("not a key and a signature")
    size, at = der[at + 1], at + 2
    if size & 0x80:
        count = size & 0x7F
        if not 1 <= count <= 2 or len(der) < at + count:
            raise ValueError("not a length")
        size, at = int.from_bytes(der[at : at + count], "big"), at + count
    if at + size > len(der):
        raise ValueError("a value that is cut off")
    return der[at : at + size], at + size
