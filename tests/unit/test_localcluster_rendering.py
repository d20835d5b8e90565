"""What the local cluster renders: settings, certificates, configuration, image archives."""

import io
import json
import ssl
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from localcluster import addons, dockerfiles, pki, storage
from localcluster.binaries import Binaries
from localcluster.components import Component, all_components, audit_policy, containerd_config, kubelet_config
from localcluster.network import Network
from localcluster.oci import scratch_image
from localcluster.settings import LocalClusterError, Settings, from_environment


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return from_environment({"CLAUDEJOBS_STATE": "/s", "CLAUDEJOBS_CACHE": str(tmp_path / "c"), "CLUSTER_NAME": "x"})


@pytest.fixture
def components(settings: Settings) -> dict[str, Component]:
    made = all_components(settings, Network(4), Binaries(Path("/b/k"), Path("/b/t"), Path("/b/n")), "localhost/pause:1")
    return {component.name: component for component in made}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CLUSTER", "minikube"),
        ("CLUSTER_NAME", "../etc"),
        ("CLUSTER_NAME", "a" * 31),
        ("CLUSTER_EGRESS", "yes"),
        ("CLAUDEJOBS_STATE", "/" + "x" * 100),
    ],
)
def test_settings_that_cannot_be_used_are_refused_by_name(variable: str, value: str) -> None:
    with pytest.raises(LocalClusterError, match=variable):
        from_environment({variable: value, "HOME": "/root"})


def test_clusters_of_one_name_in_two_places_differ_in_the_kernel() -> None:
    identities = {from_environment({"CLAUDEJOBS_STATE": place}).identity for place in ("/a", "/b", "")}
    assert len(identities) == 3


def test_control_plane_processes_do_not_share_the_administrators_rights() -> None:
    powerful = [name for name, identity in pki.CLIENTS.items() if "system:masters" in identity.groups]
    assert powerful == ["admin"]


def test_certificates_verify_against_their_authority_and_carry_their_names(tmp_path: Path) -> None:
    servers = pki.servers("node", "10.89.4.2", "10.89.4.1", "10.96.0.1")
    pki.create(tmp_path, servers)
    authority = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
    kubelet = x509.load_pem_x509_certificate((tmp_path / "kubelet.crt").read_bytes())
    kubelet.verify_directly_issued_by(authority)
    assert kubelet.subject.rfc4514_string() == "CN=system:node:node,O=system:nodes"
    api = x509.load_pem_x509_certificate((tmp_path / "apiserver.crt").read_bytes())
    names = api.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "kubernetes.default.svc" in names.get_values_for_type(x509.DNSName)
    addresses = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    assert {"127.0.0.1", "10.96.0.1", "10.89.4.1", "10.89.4.2"} <= addresses
    # What OpenSSL makes of the pair is what counts.
    ssl.create_default_context().load_cert_chain(tmp_path / "apiserver.crt", tmp_path / "apiserver.key")
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())


def test_certificates_are_usable_only_when_complete(tmp_path: Path) -> None:
    pki.create(tmp_path, {})
    assert pki.usable(tmp_path, list(pki.CLIENTS))
    assert not pki.usable(tmp_path, ["nobody"])
    (tmp_path / "admin.crt").write_text("half a certif")
    assert not pki.usable(tmp_path, ["admin"])


def test_a_client_that_came_later_gets_a_certificate_of_the_same_authority(tmp_path: Path) -> None:
    pki.create(tmp_path, {})
    authority = (tmp_path / "ca.crt").read_bytes()
    before = (tmp_path / "admin.crt").read_bytes()
    (tmp_path / "proxy.crt").unlink()
    pki.add_clients(tmp_path)
    assert pki.usable(tmp_path, list(pki.CLIENTS))
    added = x509.load_pem_x509_certificate((tmp_path / "proxy.crt").read_bytes())
    added.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    assert (tmp_path / "admin.crt").read_bytes() == before


def test_without_an_authority_no_client_is_added(tmp_path: Path) -> None:
    pki.add_clients(tmp_path)
    assert not pki.usable(tmp_path, ["proxy"])


def test_the_kubeconfig_verifies_the_server(tmp_path: Path) -> None:
    pki.create(tmp_path, {})
    config = yaml.safe_load(pki.kubeconfig(tmp_path, "admin", "https://10.89.4.2:6443", "x"))
    cluster = config["clusters"][0]["cluster"]
    assert cluster["certificate-authority-data"]
    assert "insecure-skip-tls-verify" not in cluster


def test_the_kubelet_lets_in_only_whom_the_api_server_allows(settings: Settings) -> None:
    config = kubelet_config(settings, Network(4))
    assert config["authentication"]["anonymous"] == {"enabled": False}
    assert config["authorization"] == {"mode": "Webhook"}
    assert config["readOnlyPort"] == 0
    assert config["cgroupRoot"] == f"/{settings.identity}"


def test_the_api_server_refuses_strangers_and_limits_nodes(components: dict[str, Component]) -> None:
    argv = components["kube-apiserver"].argv
    assert {"--anonymous-auth=false", "--authorization-mode=Node,RBAC"} <= set(argv)
    assert "--enable-admission-plugins=NodeRestriction" in argv
    assert "--bind-address=10.89.4.2" in argv


def test_the_audit_log_gets_writes_and_no_reads() -> None:
    writes, rest = audit_policy()["rules"]
    assert set(writes["verbs"]) == {"create", "update", "patch", "delete", "deletecollection"}
    assert rest == {"level": "None"}


def test_containerd_writes_only_below_the_state_directory(settings: Settings) -> None:
    config = tomllib.loads(containerd_config(settings, "localhost/pause:1"))
    cri = config["plugins"]["io.containerd.grpc.v1.cri"]
    runc = cri["containerd"]["runtimes"]["runc"]["options"]["Root"]
    places = (config["root"], config["state"], config["grpc"]["address"], runc)
    assert all(Path(place).is_relative_to(settings.state) for place in places)
    assert cri["restrict_oom_score_adj"] is True


def test_every_configuration_file_parses(components: dict[str, Component]) -> None:
    for component in components.values():
        for path, content in component.files.items():
            if path.suffix == ".yaml":
                assert yaml.safe_load(content)["kind"]


def test_dns_forwards_only_where_it_is_told_to() -> None:
    assert "forward" not in addons.corefile([])
    assert "forward . 192.0.2.53 192.0.2.54" in addons.corefile(["192.0.2.53", "192.0.2.54"])


def test_changed_dns_configuration_makes_new_pods() -> None:
    def annotations(forward: list[str]) -> object:
        objects = yaml.safe_load_all(addons.manifests("image", forward))
        deployment = next(o for o in objects if o["kind"] == "Deployment")
        return deployment["spec"]["template"]["metadata"]["annotations"]

    assert annotations([]) != annotations(["192.0.2.53"])


def test_volumes_are_made_below_the_folder_by_the_image_that_is_there(settings: Settings) -> None:
    objects = {o["kind"]: o for o in yaml.safe_load_all(storage.manifests("localhost/x:1", settings.state / "volumes"))}
    annotations = objects["StorageClass"]["metadata"]["annotations"]
    assert annotations == {"storageclass.kubernetes.io/is-default-class": "true"}
    data = objects["ConfigMap"]["data"]
    config = json.loads(data["config.json"])
    assert [p for entry in config["nodePathMap"] for p in entry["paths"]] == [f"{settings.state}/volumes"]
    (helper,) = yaml.safe_load(data["helperPod.yaml"])["spec"]["containers"]
    (provisioner,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert {c["image"] for c in (helper, provisioner)} == {"localhost/x:1"}
    assert {c["imagePullPolicy"] for c in (helper, provisioner)} == {"Never"}
    assert {Path(config[key]).name for key in ("setupCommand", "teardownCommand")} <= set(storage.PROGRAMS)


def test_an_image_archive_is_complete_and_reproducible() -> None:
    archive = scratch_image("localhost/x:1", {"x": b"program"}, ["/x"], "x86_64")
    assert archive == scratch_image("localhost/x:1", {"x": b"program"}, ["/x"], "x86_64")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        blobs = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    (entry,) = json.loads(blobs["index.json"])["manifests"]
    manifest = json.loads(blobs["blobs/" + entry["digest"].replace(":", "/")])
    config = json.loads(blobs["blobs/" + manifest["config"]["digest"].replace(":", "/")])
    assert config["architecture"] == "amd64"
    assert entry["annotations"]["io.containerd.image.name"] == "localhost/x:1"


DOCKERFILE = """
# COPY commented out
FROM base AS build
COPY requirements.txt /tmp/
COPY --chmod=0755 \\
    images/x/entry /bin/entry
COPY ["with blank", "/x"]
ADD https://example.invalid/x /x
RUN --mount=type=cache,target=/c --mount=type=bind,source=scripts,target=/s true
COPY --from=build /a /b
"""


def test_a_dockerfile_tells_what_it_takes_from_its_context() -> None:
    assert dockerfiles.sources(DOCKERFILE) == ["images/x/entry", "requirements.txt", "scripts", "with blank"]


def test_the_content_hash_follows_what_is_copied_and_nothing_else(tmp_path: Path) -> None:
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text("FROM base\nCOPY src /src\n")
    (tmp_path / "src" / "__pycache__").mkdir(parents=True)
    (tmp_path / "src" / "a.py").write_text("1")
    first = dockerfiles.content_hash(dockerfile, tmp_path)
    (tmp_path / "README").write_text("not copied")
    (tmp_path / "src" / "__pycache__" / "a.pyc").write_text("left by a test run")
    assert dockerfiles.content_hash(dockerfile, tmp_path) == first
    (tmp_path / "src" / "a.py").write_text("2")
    assert dockerfiles.content_hash(dockerfile, tmp_path) != first
    assert dockerfiles.content_hash(dockerfile, tmp_path, "another base") != first
