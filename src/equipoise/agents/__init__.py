"""Memory of agents: what is kept of conversations, how it is found again, and what each way of keeping costs.

Names are imported on first use, so that the command line stays light.
"""

from typing import TYPE_CHECKING

from equipoise.core.lazy import lazy

if TYPE_CHECKING:
    from equipoise.agents.chain_of_memory import Chains as Chains
    from equipoise.agents.chain_of_memory import Organized as Organized
    from equipoise.agents.chain_of_memory import chains as chains
    from equipoise.agents.chain_of_memory import cosine_floor as cosine_floor
    from equipoise.agents.chain_of_memory import organize as organize
    from equipoise.agents.job import ask as ask
    from equipoise.agents.job import compare as compare
    from equipoise.agents.leaks import lint as lint
    from equipoise.agents.memory import MemoryAnswer as MemoryAnswer
    from equipoise.agents.memory import MemoryItem as MemoryItem
    from equipoise.agents.memory import MemorySystem as MemorySystem
    from equipoise.agents.memory import Reader as Reader
else:
    __getattr__, __dir__, __all__ = lazy(__name__, __file__)
