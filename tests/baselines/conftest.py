"""Fixtures that more than one file of these tests takes: vLLM, of which there is nothing but a stub."""

import pytest
import vllm_stub


@pytest.fixture
def no_vllm_built(monkeypatch, tmp_path):
    """No .peers, no file of tuned tiles, and no answer kept from another test."""
    yield from vllm_stub.nothing_built(monkeypatch, tmp_path)


@pytest.fixture
def vllm_calls(no_vllm_built, monkeypatch):
    """The calls that the stub of vLLM gets, which it is a list of."""
    return vllm_stub.install(monkeypatch)
