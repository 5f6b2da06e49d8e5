"""The demonstration: the whole method on SmolLM2, from contrast set to report."""

from steer2edit.demo.pipeline import DemoSettings, run_demo

__all__ = ["DemoSettings", "run_demo"]
