# Two commands do everything on a machine with Python 3.11+, make and git: `make quickstart` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# The first install line decides which build of torch the machine gets; a GPU machine may want its own wheel here.
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: quickstart test test-all check docs install clean

quickstart: .venv/installed
	$(BIN)/robometer quickstart

# Two processes: what needs Ray runs in one of them (tests/conftest.py), the rest beside it.
test: check
	$(BIN)/python -m pytest -n 2 --dist loadgroup

# The slow ones too: every ZeRO stage, killed and resized.
test-all: check
	$(BIN)/python -m pytest -m ""

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry robometer pipelines jobs
	$(BIN)/deptry tests benchmarks parity docs --ignore DEP002,DEP004

# The site, into build/site: every link must lead somewhere. The tests build it too.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

install: .venv/installed

# Compiled at once, on all cores: where PYTHONDONTWRITEBYTECODE is set, every Ray worker would compile it all anew.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e ".[encoders,dev]"
	$(BIN)/python -m compileall -q -j 0 .venv/lib robometer pipelines jobs > $@.log || true
	touch $@

clean:
	rm -rf .venv outputs build dist *.egg-info
