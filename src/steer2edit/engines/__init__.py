"""Engines run requests, each under its own intervention."""

from steer2edit.engines.requests import Engine, RememberingEngine, Request, ResponseScore, RoutingEngine
from steer2edit.engines.transformers import TransformersEngine
from steer2edit.engines.vllm import VllmEngine
