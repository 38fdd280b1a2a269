"""Imported by vLLM in every process that has a worker, whatever way that process was started.

Owns the moment at which model runners learn to resume. Must not know how they do.
"""

from __future__ import annotations

from engine.vllm_resume import resume_in_runners

resume_in_runners()


class ResumingWorker:
    """Nothing by itself: vLLM mixes it into its worker class (--worker-extension-cls), and so imports this module."""
