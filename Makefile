# Everything runs in .venv, which is built when it is missing.
VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo test test-slow lint clean

demo: $(READY)
	$(PYTHON) scripts/demo.py demo

test: lint
	$(PYTHON) -m pytest

test-slow: $(READY)
	$(PYTHON) -m pytest -m slow

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(READY): setup.cfg pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,demo]'
	touch $(READY)

clean:
	rm -rf $(VENV) build dist *.egg-info
