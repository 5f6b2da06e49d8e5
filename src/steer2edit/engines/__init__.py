"""Engines run requests, each under its own intervention."""

from steer2edit.engines.remembering import Asked, RememberingEngine
from steer2edit.engines.requests import Engine, Request, ResponseScore
from steer2edit.engines.routing import RoutingEngine
from steer2edit.engines.transformers import TransformersEngine
from steer2edit.engines.vllm import VllmEngine

__all__ = [
    "Asked",
    "Engine",
    "RememberingEngine",
    "Request",
    "ResponseScore",
    "RoutingEngine",
    "TransformersEngine",
    "VllmEngine",
]
