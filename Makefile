# `make` or `make help` lists the targets. Every target that needs it sets the machine up first
# (tools/bootstrap.sh: Debian packages, .venv); the stamp file makes the second time quick.

SHELL := /bin/bash
export PATH := $(PATH):/usr/sbin:/sbin
PY    := .venv/bin/python
STAMP := .venv/.ready
T     ?=
ARGS  ?=

.PHONY: bytecode help setup run stop test test-long compiled test-compiled check images features bench docs install clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

$(STAMP): pyproject.toml tools/bootstrap.sh
	@tools/bootstrap.sh
	@touch $@

setup: $(STAMP) ## install what is missing (apt packages, .venv); the other targets do it by themselves

run: $(STAMP) ## build a sample image, mount it read/write, show what is in it and how to unmount it
	@tools/demo.sh

stop: $(STAMP) ## unmount what `make run` mounted and check the image
	@tools/demo.sh stop

# bytecode, for environments that forbid Python to write it: every mount would compile all modules again
test test-long bench: bytecode
bytecode: $(STAMP)
	@$(PY) -m compileall -q py4fs

test: $(STAMP) ## run the tests (T=path or expression picks some, ARGS= goes to pytest)
	$(PY) -m pytest -q -m "not long" $(T) $(ARGS)

# with the core as it is in the sources, whatever `make compiled` has made
test test-long: export PY4FS_COMPILED = 0

test-long: $(STAMP) ## run the tests that take long: thousands of cases, big images
	$(PY) -m pytest -q -m long --timeout 7200 $(T) $(ARGS)

check: $(STAMP) ## ruff, mypy --strict and the import contracts of the layers
	$(PY) -m ruff check .
	$(PY) -m mypy
	.venv/bin/lint-imports

images: $(STAMP) ## build the image matrix of images/ into build/images/
	$(PY) -m images.build build/images $(ARGS)

compiled: $(STAMP) ## compile the core (mypyc, some minutes): py4fs of this checkout uses it as long as its sources stay
	$(PY) tools/compiled.py

test-compiled: compiled ## run the tests with the compiled core (T=, ARGS= as for test)
	PY4FS_COMPILED=1 $(PY) -m pytest -q -m "not long" $(T) $(ARGS)

features: $(STAMP) ## bring README's feature table up to date
	$(PY) tools/readme_features.py

bench: $(STAMP) ## py4fs, fuse2fs and the kernel side by side (ARGS="--plot FILE --json FILE --cpu --scale --compiled --only CASE")
	$(PY) -m bench $(ARGS)

docs: $(STAMP) ## man pages and shell completions into build/, docs/OPTIONS.md
	$(PY) tools/make_docs.py --options build

PREFIX ?= /usr/local
install: docs ## install for everybody (PREFIX=/usr/local, DESTDIR=): command, mount helpers, man pages, systemd units
	@tools/install.sh "$(PREFIX)" "$(DESTDIR)"

clean: ## remove build/ and the tools' caches (not .venv)
	@tools/demo.sh stop >/dev/null 2>&1 || true
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
