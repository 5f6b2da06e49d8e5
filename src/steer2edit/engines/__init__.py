"""Engines run requests, each under its own intervention."""

from steer2edit.engines.requests import Engine, Request, ResponseScore
from steer2edit.engines.transformers import TransformersEngine
from steer2edit.engines.vllm import VllmEngine
from steer2edit.engines.wrapped import RememberingEngine, RoutingEngine

__all__ = [
    "Engine",
    "RememberingEngine",
    "Request",
    "ResponseScore",
    "RoutingEngine",
    "TransformersEngine",
    "VllmEngine",
]
