# make demo   the main job on the embedded data set
# make test   the tests
# make test-quick   those that are quick
# make smoke  a short run of the backbones and the three tasks
# make test-faults   kills and hostile files: the long part of the fault-injection suite
# make lint   form, spelling and types of the code
# make docs   the documentation, at http://127.0.0.1:8000
# make test-deploy   peft, openvino, nncf, torchao and thop, which it installs (380 MB), and AOTInductor
# make env    only the environment that both need
# The first run makes the environment, in about 10 minutes (tools/setup_env.py); later ones use it.

# onedl, or openmmlab: each has an environment of its own.
STACK ?= onedl
VENV ?= $(if $(filter onedl,$(STACK)),.venv,.venv-$(STACK))

# torch 2.1, which the openmmlab stack is built on, exists for no later Python.
NEWEST = $(if $(filter openmmlab,$(STACK)),11,13)

# The environment's own Python comes first, so that PYTHON= has to be given once only. Each
# candidate is run, because a name on the PATH need not stand for a Python that is installed.
PYTHON ?= $(shell for python in "$(VENV)/bin/python" python3 python3.13 python3.12 python3.11 \
	python3.10; do \
	"$$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, $(NEWEST)))' \
	>/dev/null 2>&1 && echo "$$python" && break; done)

# Threads that wait for each other sleep instead of spinning: with data loaders or anything else on
# the same cores, spinning makes a training step several times slower.
export OMP_WAIT_POLICY ?= PASSIVE

# Packages named there would shadow the pinned ones.
unexport PYTHONPATH PYTHONHOME

# The checks of `make lint` have an environment of their own, which takes seconds to make.
LINT = .venv-lint

.PHONY: demo test test-quick smoke test-faults test-deploy lint docs env

demo: env
	@"$(VENV)/bin/python" tools/demo.py

test: env
	@OMP_NUM_THREADS=1 "$(VENV)/bin/python" -m pytest tests -q -n 2 --dist worksteal --durations=15 \
		-m "not faults and not aot"

test-quick: env
	@OMP_NUM_THREADS=1 "$(VENV)/bin/python" -m pytest tests -q -n 2 --dist worksteal \
		-m "not faults and not aot and not slow"

# The backbones, and a short training, resumption and test of each task.
smoke: env
	@OMP_NUM_THREADS=1 "$(VENV)/bin/python" -m pytest -v tests/test_models/test_backbones.py \
		tests/test_tools/test_train_and_test.py::test_train_resume_and_test

test-faults: env
	@OMP_NUM_THREADS=1 "$(VENV)/bin/python" -m pytest tests/test_faults -q -s

# All of them run, so that one look shows everything; types are judged as in the environment.
lint: env $(LINT)/ready
	@failed=; for check in "ruff check" "ruff format --check" codespell \
	"basedpyright --pythonpath $(VENV)/bin/python"; do \
	"$(LINT)/bin/"$$check || failed="$$failed  $$check"; done; \
	test -z "$$failed" || { echo "Failed:$$failed" >&2; exit 1; }

$(LINT)/ready: requirements/lint.txt
	@rm -rf $(LINT) && "$(VENV)/bin/python" -m venv $(LINT) && \
	$(LINT)/bin/python -m pip install -q --disable-pip-version-check -r requirements/lint.txt && \
	touch $@

docs: env
	@"$(VENV)/bin/python" -m mkdocs serve

# In a folder of its own, so that the environment stays that of the lock file.
$(VENV)/deploy/.installed: requirements/deploy.txt | env
	@rm -rf "$(@D)"
	@"$(VENV)/bin/python" -m pip install -q --no-deps --target "$(@D)" -r $<
	@touch "$@"

test-deploy: $(VENV)/deploy/.installed
	@OMP_NUM_THREADS=1 PYTHONPATH="$(<D)" "$(VENV)/bin/python" -m pytest tests -q -m "deploy or aot"

env:
	@python="$(PYTHON)"; test -n "$$python" || { echo "No Python 3.10 to 3.$(NEWEST) was found:" \
	"install one, or name it, as in: make test PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	"$$python" tools/setup_env.py --venv "$(VENV)" --stack "$(STACK)"
