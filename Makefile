# The single entrance: `make help` lists the targets. Nothing needs to be set up first.

PYTHON ?= python3
VENV := .venv
PY := PYTHONPATH=operator:. $(VENV)/bin/python
READY := $(VENV)/.ready-$(shell sha256sum requirements/dev.txt | cut -c1-16)
CRDS := claudecodejobs claudecodequeues claudecodepools
COMPILE := $(VENV)/bin/uv pip compile --python-version 3.11 --universal --generate-hashes \
	--no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet

.DEFAULT_GOAL := help
.PHONY: help demo test test-unit chaos cluster cluster-down images lint format crd docs lock sbom bench

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'
	@echo
	@echo "  CLUSTER=local|kind|existing chooses the cluster (default: kind with Docker, else local);"
	@echo "  existing needs CLUSTER_CONTEXT=NAME, the kubectl context that may be used."
	@echo "  make demo QUEUE=1 enqueues its job with BullMQ in Node 20."
	@echo "  make demo takes ANTHROPIC_API_KEY (else the model is scripted) and DATABASE_URL (else SQLite) from the environment."
	@echo "  make test TESTS=PATH runs a part of the tests."

demo: $(READY) ## Run a first job on a real cluster, everything set up on the way
	@$(PY) -m localcluster.demo

test: $(READY) ## Run the unit, integration and end-to-end tests
	$(PY) -m pytest -n 3 --dist loadfile $(TESTS)

test-unit: $(READY) ## Run the tests that need no cluster and no server
	$(PY) -m pytest tests/unit

chaos: $(READY) ## Put faults at the operator's writes and events, generate jobs, autoscale nodes, and queue in Kueue (minutes; CHAOS=full for all)
	$(PY) -m pytest tests/chaos

cluster: $(READY) ## Make the cluster, or reuse it, and print its KUBECONFIG
	@$(PY) -m localcluster up

cluster-down: $(READY) ## Stop the cluster and remove all that it made
	@$(PY) -m localcluster down

images: $(READY) ## Build the images and load them into the cluster
	@$(PY) -m localcluster images build-and-load

lint: $(READY) ## Style, types, import contracts, and that generated files are up to date
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy --no-incremental -p localcluster
	PYTHONPATH=operator $(VENV)/bin/lint-imports
	@for plural in $(CRDS); do $(PY) -m claudejobs.cli.main crd $$plural | diff - crds/$$plural.yaml || exit 1; done && \
	  diff -r crds charts/claudejobs/files/crds || \
	  { echo "The CRDs are not what the models say; run make crd"; exit 1; }
	$(PY) docs/generate.py --check
	$(PY) -m tests.support.isolation --check
	$(PY) charts/generate.py --check

format: $(READY) ## Format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

crd: $(READY) ## Write the CRDs anew from the models
	for plural in $(CRDS); do $(PY) -m claudejobs.cli.main crd $$plural > crds/$$plural.yaml || exit 1; done
	rm -rf charts/claudejobs/files/crds && cp -r crds charts/claudejobs/files/crds

docs: $(READY) ## Write docs/reference.md, and the chart's schema and README, anew from their sources
	$(PY) docs/generate.py
	$(PY) -m tests.support.isolation
	$(PY) charts/generate.py

lock: $(READY) ## Resolve the dependencies anew
	$(VENV)/bin/pip install --quiet uv
	$(COMPILE) --upgrade pyproject.toml --all-extras --group dev -o requirements/dev.txt
	$(COMPILE) pyproject.toml --extra operator -c requirements/dev.txt -o requirements/operator.txt
	$(COMPILE) pyproject.toml --extra runner -c requirements/dev.txt -o requirements/runner.txt
	$(COMPILE) --upgrade --group sbom -o requirements/sbom.txt

sbom: $(READY) ## List what the images hold of Python, from the locks, as CycloneDX in dist/sbom
	@mkdir -p dist/sbom
	@$(PYTHON) -m venv dist/sbom-venv && dist/sbom-venv/bin/pip install --quiet --require-hashes -r requirements/sbom.txt
	@for image in operator runner; do dist/sbom-venv/bin/python -W ignore::UserWarning -m cyclonedx_py requirements --output-reproducible --pyproject pyproject.toml \
	  -o dist/sbom/claudejobs-$$image.cdx.json requirements/$$image.txt || exit 1; done; ls dist/sbom/*

bench: $(READY) ## Run the benchmarks
	for file in benchmarks/*.py; do $(PY) -m localcluster run -- $(CURDIR)/$(VENV)/bin/python $$file || exit 1; done

# The environment is made anew when the locked dependencies change; a half-made one has no mark and is removed.
$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is `$(PYTHON) --version 2>&1`. Set PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { [ "`id -u`" = 0 ] && command -v apt-get >/dev/null && echo "Installing python3-venv..." && \
	    apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null; } || \
	  { echo "Python's venv module is missing; install it (Debian: apt-get install python3-venv)"; exit 1; }
	@echo "Installing the Python packages of requirements/dev.txt..."
	@rm -rf $(VENV) && $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $(READY)
