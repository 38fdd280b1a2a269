"""The HTTP front of Baton: OpenAI requests in, a route for each, bytes relayed out.

Must not know vLLM, Ray, gRPC or tokens: workers are cluster.pool sessions, replies are opaque bytes.
"""

from typing import Final

VERSION: Final = "0.1.0"
