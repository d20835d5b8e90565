"""The command line: `python -m localcluster COMMAND`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from localcluster import images
from localcluster.progress import console
from localcluster.settings import LocalClusterError, from_environment
from localcluster.targets import Cluster, Row, Target, select

_ENVIRONMENT = """environment:
  CLUSTER           local, kind or existing; unset: kind when a Docker daemon answers, else local
  CLUSTER_NAME      name of the cluster (claudejobs)
  CLUSTER_EGRESS    open: pods reach the world outside this machine; closed (default): they do not
  CLUSTER_CONTEXT   with CLUSTER=existing: the kubectl context that may be used
  CLAUDEJOBS_CACHE  where binaries and images are kept (~/.cache/claudejobs)
  CLAUDEJOBS_STATE  where clusters live (/var/lib/claudejobs-localcluster)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the process's exit status."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except LocalClusterError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted: run the same command again to go on")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m localcluster",
        description="A real Kubernetes cluster for development and tests.",
        epilog=_ENVIRONMENT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="make or repair the cluster, print its kubeconfig's path")
    commands.add_parser("down", help="remove the cluster; caches stay")
    commands.add_parser("status", help="show what runs; status 0 when all is healthy")
    commands.add_parser("kubeconfig", help="print the kubeconfig's path")
    build = commands.add_parser("images", help="build the product's images and load them").add_subparsers(
        dest="action", required=True
    )
    load = build.add_parser("build-and-load", help="print the references that name the images' content")
    load.add_argument("names", nargs="*", metavar="IMAGE", help="for example claudejobs-runner (default: all)")
    run = commands.add_parser("run", help="run a command with the cluster's KUBECONFIG and tools")
    run.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD ...")
    return parser


def _run(options: argparse.Namespace) -> int:
    target = select(from_environment())
    match options.command:
        case "up":
            _show(target.up())
        case "down":
            target.down()
        case "status":
            return _print_status(target.status())
        case "kubeconfig":
            print(target.cluster().kubeconfig)
        case "images":
            for reference in images.build_all(target.build_and_load, options.names).values():
                print(reference)
        case "run":
            return _replace_process(target, options.argv)
    return 0


def _show(cluster: Cluster) -> None:
    print(cluster.kubeconfig)
    console.print(
        f"\nThe cluster is up ({cluster.kind}). Use it:\n"
        f"  export KUBECONFIG={cluster.kubeconfig} PATH={cluster.bin_dir}:$PATH\n"
        "  kubectl get pods --all-namespaces\n"
        "or: python -m localcluster run -- kubectl get pods --all-namespaces",
        markup=False,
    )
    if cluster.gateway:
        console.print(f"Pods reach servers on this machine at {cluster.gateway}.", markup=False)


def _print_status(rows: list[Row]) -> int:
    table = Table("part", "", "detail", box=None)
    for row in rows:
        table.add_row(row.name, "[green]ok[/]" if row.healthy else "[red]down[/]", row.detail)
    # Where nobody's terminal sets the width, paths are printed whole.
    (Console() if sys.stdout.isatty() else Console(width=200)).print(table)
    return 0 if all(row.healthy for row in rows) else 1


def _replace_process(target: Target, argv: list[str]) -> int:
    command = argv[1:] if argv[:1] == ["--"] else argv
    if not command:
        raise LocalClusterError("nothing to run: write `python -m localcluster run -- CMD ...`")
    cluster = target.cluster()
    environment = {
        **os.environ,
        "KUBECONFIG": str(cluster.kubeconfig),
        "PATH": f"{cluster.bin_dir}:{os.environ.get('PATH', os.defpath)}",
    }
    try:
        os.execvpe(command[0], command, environment)  # noqa: S606 - no shell is wanted
    except OSError as error:
        raise LocalClusterError(f"{command[0]} cannot be run: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
