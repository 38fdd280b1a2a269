"""Builds vLLM's own OpenAI application around a running engine, without a server.

Owns the places where vLLM keeps `build_app` and `init_app_state`. Must not know workers or specs.
"""

from __future__ import annotations

import gc
from argparse import Namespace
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from engine.asgi import AsgiApp

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


async def build_openai_app(client: AsyncLLM, args: Namespace) -> AsgiApp:
    """Return vLLM's application over `client`, with its static LoRA adapters loaded.

    The application's lifespan is not run: all it does is log statistics and freeze the heap, which is done here.
    """
    try:
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app
    except ImportError:  # vLLM before 0.32
        from vllm.entrypoints.openai.api_server import build_app, init_app_state
    tasks = await client.get_supported_tasks()
    app = build_app(args, tasks, client.model_config)
    await init_app_state(client, app.state, args, tasks)
    app.state.server = SimpleNamespace(should_exit=False)  # what vLLM's error handler tells of the engine's death
    await client.reset_mm_cache()
    gc.collect()
    gc.freeze()
    return cast(AsgiApp, app)
