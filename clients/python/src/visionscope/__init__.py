"""VisionScope Billing from Python: a client of its HTTP API, and workers that run its jobs."""

from visionscope.client import Client
from visionscope.errors import NoAnswer, Problem, VisionScopeError
from visionscope.job import Done, GiveUp, Job, Retry
from visionscope.pages import Page, Pages
from visionscope.worker import Worker

__all__ = [
    "Client",
    "Done",
    "GiveUp",
    "Job",
    "NoAnswer",
    "Page",
    "Pages",
    "Problem",
    "Retry",
    "VisionScopeError",
    "Worker",
]
