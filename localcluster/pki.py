"""The cluster's certificates: one authority for Kubernetes, one for etcd, an identity for each component."""

from __future__ import annotations

import base64
import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from localcluster.shell import write

LIFETIME = datetime.timedelta(days=365)
RENEW_BEFORE = datetime.timedelta(days=14)


@dataclass(frozen=True)
class Authority:
    """A certificate authority that can sign."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class Identity:
    """Whom a certificate speaks for: Kubernetes reads the user from `name` and the groups from `groups`."""

    name: str
    groups: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    """DNS names and addresses under which it serves; empty for a client."""


# The user names are fixed: the API server's built-in roles are bound to them.
CLIENTS = {
    "admin": Identity("kubernetes-admin", ("system:masters",)),
    "controller-manager": Identity("system:kube-controller-manager"),
    "scheduler": Identity("system:kube-scheduler"),
    "proxy": Identity("system:kube-proxy"),
    "network-policies": Identity("system:kube-network-policies"),
    "apiserver-kubelet-client": Identity("kube-apiserver-kubelet-client"),
}


def new_authority(name: str) -> Authority:
    """Make an authority that signs certificates and nothing else."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _certificate(subject, subject, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signing=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def issue(authority: Authority, identity: Identity) -> tuple[bytes, bytes]:
    """Return a new certificate and its key, both PEM; a server's certificate also serves as a client's."""
    key = ec.generate_private_key(ec.SECP256R1())
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in identity.groups]
    subject = x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, identity.name)])
    purposes = [
        ExtendedKeyUsageOID.CLIENT_AUTH,
        *([ExtendedKeyUsageOID.SERVER_AUTH] if identity.hosts else []),
    ]
    builder = (
        _certificate(subject, authority.certificate.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signing=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    )
    if identity.hosts:
        names = x509.SubjectAlternativeName([_alternative_name(host) for host in identity.hosts])
        builder = builder.add_extension(names, critical=False)
    return _pem(builder.sign(authority.key, hashes.SHA256())), _key_pem(key)


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks of a machine that was suspended may step back a little.
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + LIFETIME)
    )


def _usage(*, signing: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signing,
        crl_sign=signing,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def servers(node: str, node_address: str, gateway: str, api_service_address: str) -> dict[str, Identity]:
    """Name who serves TLS in the cluster, and under which names."""
    kubernetes = ("kubernetes", "kubernetes.default", "kubernetes.default.svc")
    api_hosts = (*kubernetes, "kubernetes.default.svc.cluster.local", "localhost", "127.0.0.1", node_address)
    return {
        "apiserver": Identity("kube-apiserver", hosts=(*api_hosts, gateway, api_service_address)),
        # Its user name and group are what the Node authorizer and NodeRestriction go by.
        "kubelet": Identity(f"system:node:{node}", ("system:nodes",), (node, node_address)),
    }


def create(directory: Path, identities: dict[str, Identity]) -> None:
    """Fill `directory` with authorities, certificates and the key that signs service account tokens."""
    authority = new_authority("claudejobs-local-cluster")
    etcd = new_authority("claudejobs-local-etcd")
    write(directory / "ca.crt", _pem(authority.certificate))
    write(directory / "ca.key", _key_pem(authority.key))
    # An authority of its own: who may speak to the API server may not therefore speak to etcd.
    write(directory / "etcd-ca.crt", _pem(etcd.certificate))
    signed = [
        (authority, {**CLIENTS, **identities}),
        (
            etcd,
            {
                "etcd": Identity("etcd", hosts=("localhost", "127.0.0.1")),
                "apiserver-etcd-client": Identity("kube-apiserver-etcd-client"),
            },
        ),
    ]
    for signer, names in signed:
        for name, identity in names.items():
            certificate, key = issue(signer, identity)
            write(directory / f"{name}.crt", certificate)
            write(directory / f"{name}.key", key)
    tokens = ec.generate_private_key(ec.SECP256R1())
    write(directory / "service-account.key", _key_pem(tokens))
    write(
        directory / "service-account.pub",
        tokens.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
    )


def add_clients(directory: Path) -> None:
    """Issue to clients that came after `directory` was filled what they lack, as far as its authority is there."""
    missing = {name: identity for name, identity in CLIENTS.items() if not (directory / f"{name}.crt").exists()}
    try:
        certificate = x509.load_pem_x509_certificate((directory / "ca.crt").read_bytes())
        key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
    except (OSError, ValueError):
        return  # `usable` says so.
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    for name, identity in missing.items():
        client, client_key = issue(Authority(certificate, key), identity)
        write(directory / f"{name}.key", client_key)
        write(directory / f"{name}.crt", client)


def usable(directory: Path, names: Sequence[str]) -> bool:
    """Say whether all of `names` have a certificate and a key there, none of them about to expire."""
    limit = datetime.datetime.now(datetime.UTC) + RENEW_BEFORE
    try:
        for name in names:
            certificate = x509.load_pem_x509_certificate((directory / f"{name}.crt").read_bytes())
            if certificate.not_valid_after_utc < limit or not (directory / f"{name}.key").stat().st_size:
                return False
        return bool((directory / "service-account.key").stat().st_size)
    except (OSError, ValueError):
        return False


def kubeconfig(directory: Path, client: str, server: str, cluster: str) -> str:
    """Render a self-contained kubeconfig for one of the clients, the authority's certificate embedded."""

    def embedded(name: str) -> str:
        return base64.b64encode((directory / name).read_bytes()).decode()

    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": cluster,
                    "cluster": {"server": server, "certificate-authority-data": embedded("ca.crt")},
                }
            ],
            "users": [
                {
                    "name": client,
                    "user": {
                        "client-certificate-data": embedded(f"{client}.crt"),
                        "client-key-data": embedded(f"{client}.key"),
                    },
                }
            ],
            "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": client}}],
            "current-context": cluster,
        },
        sort_keys=False,
    )
