"""Chat models for pipelines, on Inspect AI's model layer: every call recorded, replayable, counted, within a budget.

Names are imported on first use, so that `import equipoise.chat` needs no extra. A function with the name of its module is
imported from there: `from equipoise.chat.grade import grade`.
"""

from typing import TYPE_CHECKING

from equipoise.core.lazy import lazy

if TYPE_CHECKING:
    from equipoise.chat.account import Account as Account
    from equipoise.chat.calls import Call as Call
    from equipoise.chat.calls import Message as Message
    from equipoise.chat.calls import Reply as Reply
    from equipoise.chat.client import Chat as Chat
    from equipoise.chat.grade import ChatGrader as ChatGrader
    from equipoise.chat.grade import Grader as Grader
    from equipoise.chat.grade import Planted as Planted
    from equipoise.chat.grade import RuleGrader as RuleGrader
    from equipoise.chat.grade import Submission as Submission
    from equipoise.chat.grade import plant as plant
    from equipoise.chat.grades import BINARY as BINARY
    from equipoise.chat.grades import FOUR as FOUR
    from equipoise.chat.grades import Grades as Grades
    from equipoise.chat.grading import Grade as Grade
    from equipoise.chat.grading import Grading as Grading
    from equipoise.chat.record import Record as Record
    from equipoise.chat.roles import Role as Role
    from equipoise.chat.roles import Roles as Roles
    from equipoise.chat.templates import Template as Template
    from equipoise.core.budget import Budget as Budget
else:
    __getattr__, __dir__, __all__ = lazy(__name__, __file__)
