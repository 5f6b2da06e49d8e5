"""Engines run requests, each under its own intervention."""

from steer2edit.engines.requests import (
    Engine as Engine,
    RememberingEngine as RememberingEngine,
    Request as Request,
    ResponseScore as ResponseScore,
    RoutingEngine as RoutingEngine,
)
from steer2edit.engines.transformers import TransformersEngine as TransformersEngine
from steer2edit.engines.vllm import VllmEngine as VllmEngine
