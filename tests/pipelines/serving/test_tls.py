"""TLS: certificates that cannot serve are refused before Ray starts; clients and probes trust the right ones."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

import httpx
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pipelines.serving.tls import check_pair, trust
from robometer import calls
from robometer.baselines.trivial import FrameDifference
from robometer.client import RemoteScorer, ScoringError
from robometer.remote_session import RemoteSession, SessionError
from robometer.settings import ConfigError
from tests.local_endpoint import endpoint

NOW = datetime.datetime.now(datetime.UTC)


def make_pair(folder: Path, name: str, days: int = 2, issuer: Path | None = None, password: bytes = b"") -> list[str]:
    """A certificate for 127.0.0.1 and its key; of a small authority `issuer`, or signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer, signed_by = key, subject
    if issuer is not None:
        loaded = serialization.load_pem_private_key(issuer.with_suffix(".key").read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        signer, signed_by = loaded, x509.load_pem_x509_certificate(issuer.read_bytes()).subject
    certificate = (
        x509.CertificateBuilder(signed_by, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(NOW - datetime.timedelta(days=9))
        .not_valid_after(NOW + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(issuer is None, None), True)
        .sign(signer, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    encryption = serialization.BestAvailableEncryption(password) if password else plain
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(pem))
    content = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption)
    (folder / f"{name}.key").write_bytes(content)
    return [str(folder / f"{name}.pem"), str(folder / f"{name}.key")]


def test_what_cannot_serve_is_one_sentence(tmp_path: Path) -> None:
    good, other = make_pair(tmp_path, "good"), make_pair(tmp_path, "other")
    cut = tmp_path / "cut.pem"
    cut.write_bytes(Path(good[0]).read_bytes()[:300])
    check_pair("", "")
    check_pair(*good)
    for pair, sentence in (
        ((good[0], ""), "both"),
        (("", good[1]), "both"),
        ((f"{good[0]}.none", good[1]), "serve.tls_certificate=.* cannot be read"),
        ((good[0], str(tmp_path)), "serve.tls_key=.* cannot be read"),
        ((good[0], other[1]), "is not the key of"),
        ((good[1], good[1]), "^serve.tls_certificate=.*key holds no whole certificate"),
        ((str(cut), good[1]), "^serve.tls_certificate=.*cut.pem holds no whole certificate"),
        ((good[0], good[0]), "^serve.tls_key=.*pem cannot be used"),
        (make_pair(tmp_path, "locked", password=b"secret"), "^serve.tls_key=.* without a password"),
        (make_pair(tmp_path, "old", days=-1), "no client can use .*certificate has expired"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            check_pair(*pair)


def test_clients_and_probes_trust_the_given_certificate_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = make_pair(tmp_path, "authority")
    certificate, key = make_pair(tmp_path, "leaf", issuer=Path(authority[0]))
    check_pair(certificate, key)
    settings = [f"serve.tls_certificate={certificate}", f"serve.tls_key={key}"]
    with endpoint(FrameDifference(), settings) as url:
        assert url.startswith("https://")
        for trusted in (authority[0], certificate):
            with RemoteScorer(url, ca_file=trusted) as remote:
                assert remote.name == "frame_difference"
                with remote.open_session("open the drawer") as session:
                    assert session.push(np.zeros((8, 8, 3), np.uint8))[0] == 0
        with pytest.raises(SessionError, match=r"is not trusted here.*give its PEM file as ROBOMETER_CA"):
            RemoteSession(url, ["open the drawer"])
        with pytest.raises(ScoringError, match=r"is not trusted here.*give its PEM file as ROBOMETER_CA"):
            RemoteScorer(url)
        with pytest.raises(ScoringError, match=r"is not trusted here.*that was given .* holds neither"):
            RemoteScorer(url, ca_file=make_pair(tmp_path, "other")[0])
        with pytest.raises(ScoringError, match=r"is not trusted here.*one whose subjectAltName holds this name"):
            RemoteScorer(url.replace("127.0.0.1", "localhost"), ca_file=certificate)
        monkeypatch.setattr(calls, "START_PATIENCE_S", 0.1)
        with pytest.raises(ScoringError, match="If it has TLS, begin its URL with https://"):
            RemoteScorer(url.replace("https", "http"))
        with pytest.raises(ScoringError, match="cannot be read as PEM"):
            RemoteScorer(url, ca_file=key)
        assert httpx.get(f"{url}/health", verify=trust(certificate)).is_success
        Path(certificate).unlink()  # a renewal
        assert httpx.get(f"{url}/health", verify=trust(certificate)).is_success


def test_probes_still_trust_a_certificate_that_has_run_out(tmp_path: Path) -> None:
    certificate, key = make_pair(tmp_path, "old", days=-1)
    with endpoint(FrameDifference(), [f"serve.tls_certificate={certificate}", f"serve.tls_key={key}"]) as url:
        assert httpx.get(f"{url}/health", verify=trust(certificate)).is_success
        other, _ = make_pair(tmp_path, "other")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{url}/health", verify=trust(other))
        with pytest.raises(ScoringError, match=r"has expired.*Renew it"):
            RemoteScorer(url, ca_file=certificate)


def test_a_client_that_expects_tls_of_an_endpoint_without_is_told_so() -> None:
    with endpoint(FrameDifference()) as url, pytest.raises(ScoringError, match=r"begin its URL with http://$"):
        RemoteScorer(url.replace("http", "https"))
