"""Builds images without a daemon and without pulling: buildah, on a base made of Debian's packages."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localcluster import dockerfiles, packages, teardown
from localcluster.progress import say, step
from localcluster.settings import REPOSITORY, LocalClusterError
from localcluster.shell import locked, run, succeeds

BASE = "docker.io/library/debian:bookworm-slim"
_RELEASE = "bookworm"
_KEPT_ARCHIVES = 3
# Inside a build, and not where the ca-certificates package keeps its own, which could not be installed then.
_CERTIFICATES = "/run/claudejobs-build/ca.crt"


@dataclass(frozen=True)
class Image:
    """An image that was built."""

    reference: str
    """Names this very content: `localhost/NAME:HASH`."""
    archive: Path


def product_images() -> dict[str, Path]:
    """Map the name of each of the product's images to its Dockerfile; the build context is the checkout."""
    found = sorted(REPOSITORY.glob("images/*/Dockerfile"))
    return {f"claudejobs-{path.parent.name}": path for path in found}


def build_all(build_and_load: Callable[[str, Path, Path], str], only: list[str]) -> dict[str, str]:
    """Hand the product's images (all, or those in `only`) to a target; return name -> reference.

    Raises LocalClusterError when there is no such image.
    """
    known = product_images()
    if unknown := [name for name in only if name not in known]:
        raise LocalClusterError(f"no image {unknown[0]}: there are {', '.join(known) or 'none'}")
    if not known:
        raise LocalClusterError(f"no Dockerfile in {REPOSITORY / 'images'}/*: nothing to build")
    return {name: build_and_load(name, known[name], REPOSITORY) for name in only or known}


def build(cache: Path, name: str, dockerfile: Path, context: Path) -> Image:
    """Return the image of a Dockerfile, built only when no archive of the same content is kept.

    Raises LocalClusterError with the end of the build's output when it fails.
    """
    if not dockerfile.is_file():
        raise LocalClusterError(f"no Dockerfile at {dockerfile}: nothing to build {name} from")
    base_key = _base_key(datetime.datetime.now(datetime.UTC).date())
    content = dockerfiles.content_hash(dockerfile, context, base_key)
    image = Image(f"localhost/{name}:{content}", cache / "images" / f"{name}-{content}.tar")
    if image.archive.exists():
        image.archive.touch()
        return image
    with locked(cache / "images.lock"):
        if not image.archive.exists():
            packages.ensure(packages.TO_BUILD_IMAGES)
            # A build that was ended by force leaves its mounts.
            teardown.unmount_below(cache / "buildah")
            _ensure_base(cache, base_key)
            with step(f"building {image.reference}"):
                _build(cache, image, dockerfile, context)
            _prune(cache, name)
    return image


def _buildah(cache: Path, *arguments: str | Path) -> str:
    """Run buildah on a storage of our own, so that it neither sees nor changes the user's images."""
    (cache / "buildah" / "tmp").mkdir(parents=True, exist_ok=True)
    return run(["buildah", *_storage(cache), *arguments], env={"TMPDIR": str(cache / "buildah" / "tmp")})


def _storage(cache: Path) -> list[str]:
    home = cache / "buildah"
    return ["--root", f"{home}/root", "--runroot", f"{home}/run", "--storage-driver", "overlay"]


def _is_built(cache: Path, reference: str) -> bool:
    """Say whether the builder's storage holds an image."""
    return succeeds(["buildah", *_storage(cache), "inspect", "--type", "image", reference])


def _build(cache: Path, image: Image, dockerfile: Path, context: Path) -> None:
    # The same times in every build, so that the same content has the same digests.
    options: list[str | Path] = ["--isolation", "chroot", "--layers", "--pull-never", "--timestamp", "0"]
    if bundle := _certificate_bundle():
        options += ["--volume", f"{bundle}:{_CERTIFICATES}:ro", "--build-arg", f"PIP_CERT={_CERTIFICATES}"]
    _buildah(cache, "bud", *options, "--tag", image.reference, "--file", dockerfile, context)
    _export(cache, image.reference, image.archive)
    say(f"{image.reference} has {image.archive.stat().st_size / 1e6:.0f} MB, unpacked")


def _certificate_bundle() -> str | None:
    """Return the machine's own certificate bundle when its environment asks programs to use one."""
    named = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    return named if named and Path(named).is_file() else None


def _export(cache: Path, reference: str, archive: Path) -> None:
    partial = archive.with_suffix(f".{os.getpid()}")
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        _buildah(cache, "push", reference, f"docker-archive:{partial}:{reference}")
        partial.rename(archive)
    finally:
        partial.unlink(missing_ok=True)


def _base_key(today: datetime.date) -> str:
    """Name the base image's state: it is made anew each month, for the distribution's security updates."""
    return f"{_RELEASE}-slim-{today:%Y%m}"


def _slim() -> list[str]:
    """Leave out what the slim image of the distribution leaves out, now and when packages are added to it."""
    excluded = [f"path-exclude=/usr/share/{name}/*" for name in ("doc", "info", "locale", "man")]
    return [f"--dpkgopt={option}" for option in (*excluded, "path-include=/usr/share/doc/*/copyright")]


def _ensure_base(cache: Path, key: str) -> None:
    labelled = f"localhost/claudejobs-base:{key}"
    if _is_built(cache, labelled):
        return
    rootfs = cache / "images" / f"base-{key}.tar"
    rootfs.parent.mkdir(parents=True, exist_ok=True)
    if not rootfs.exists():
        partial = rootfs.with_name(f".{os.getpid()}-{rootfs.name}")
        with step(f"making the base image ({_RELEASE})"):
            run(["mmdebstrap", "--variant=minbase", "--quiet", *_slim(), _RELEASE, partial])
        partial.rename(rootfs)
    dockerfile = cache / "buildah" / "base.Dockerfile"
    dockerfile.parent.mkdir(parents=True, exist_ok=True)
    dockerfile.write_text(f'FROM scratch\nADD {rootfs.name} /\nCMD ["bash"]\n')
    # Under the name that Dockerfiles ask for, so that the same Dockerfile works where it is pulled.
    _buildah(cache, "bud", "--pull-never", "--timestamp", "0", "--tag", BASE, "--file", dockerfile, rootfs.parent)
    _buildah(cache, "tag", BASE, labelled)
    for old in rootfs.parent.glob("base-*.tar"):
        if old != rootfs:
            old.unlink()


def _prune(cache: Path, name: str) -> None:
    digits = "[0-9a-f]" * 12
    archives = sorted((cache / "images").glob(f"{name}-{digits}.tar"), key=lambda p: p.stat().st_mtime, reverse=True)
    for old in archives[_KEPT_ARCHIVES:]:
        reference = f"localhost/{name}:{old.stem[-12:]}"
        if _is_built(cache, reference):
            _buildah(cache, "rmi", "--force", reference)
        old.unlink()
