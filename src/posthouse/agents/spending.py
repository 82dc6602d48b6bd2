"""What a model request may cost and what it took: reserved before it is sent, counted whatever became of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil

from pydantic import ValidationError

from posthouse.agents.assignment import Assignment
from posthouse.agents.conversation import TOOL_REFUSED
from posthouse.agents.narrator import Narrator
from posthouse.budget.model import (
    WARN_PERCENT,
    Granted,
    More,
    OnExceeded,
    Refused,
    Reservation,
    words_for,
)
from posthouse.errors import BudgetExceeded, PosthouseError
from posthouse.events.types import BudgetExceeded as BudgetExceededEvent
from posthouse.inputs.model import Decision, Kind, Question, Request
from posthouse.journal.model import Usage, digest_of
from posthouse.llm.estimate import input_tokens, tokens_of, written_tokens
from posthouse.llm.messages import Completion, ModelRequest, Tokens
from posthouse.llm.prices import Prices
from posthouse.llm.retry import Retry
from posthouse.llm.routed import Hooks, Routed
from posthouse.llm.router import Choice, Reference, SkipCandidate, Wanted
from posthouse.tools.answer import failed
from posthouse.tools.model import ToolAnswer

# Of a run with a budget: what an answer may take when its agent does not say, and what is the least worth asking for.
MOST_OUTPUT_TOKENS = 4096
LEAST_OUTPUT_TOKENS = 64


class Cheaper(PosthouseError):
    """Most of the budget is spent: the cheaper models are to be asked first."""


class OverBudget(PosthouseError):
    """The budget allows no further request, and nobody gives more; `limit` is the one that is reached."""

    def __init__(self, limit: str) -> None:
        super().__init__(words_for(limit))
        self.limit = limit


@dataclass(frozen=True)
class Till:
    """Counts in money what requests take."""

    prices: Prices

    def took(self, choice: Choice, tokens: Tokens) -> Usage:
        """What an answered request took; a price that is not known counts as unpriced and not as 0."""
        cost = self.prices.cost(choice.provider, choice.model, tokens.input, tokens.output)
        return Usage(
            model_calls=1,
            input_tokens=tokens.input,
            output_tokens=tokens.output,
            nano_usd=cost or 0,
            unpriced_calls=int(cost is None),
        )

    def wasted(self, choice: Choice, tokens: Tokens) -> Usage:
        """What a try took that failed."""
        cost = self.prices.cost(choice.provider, choice.model, tokens.input, tokens.output)
        return Usage(
            wasted_tokens=tokens.input + tokens.output,
            wasted_nano_usd=cost or 0,
            unpriced_calls=int(cost is None),
        )


class Tab:
    """What one step's request takes, try by try, and what is reserved for it."""

    def __init__(self, till: Till, models: Routed, job: Assignment, key: str) -> None:
        self._till = till
        self._models = models
        self._job = job
        self._wasted: dict[str, Usage] = {}
        self._asked: Choice | None = None
        self._held = False
        self._questions = 0
        self._unpriced: Refused | None = None
        self.key = key
        self.wanted: Wanted = job.wanted

    async def prepare(self, choice: Choice, request: ModelRequest) -> ModelRequest:
        """The request as the budget allows it. Raises SkipCandidate (a model without a price), Cheaper, OverBudget."""
        most = request.max_output_tokens or MOST_OUTPUT_TOKENS
        while True:
            match await self._job.steps.reserve(self._reservation(choice, request, most)):
                case Refused(what="price") as refused:
                    self._unpriced = refused
                    raise SkipCandidate(f"{_name(choice)} has no known price")
                case Refused() as refused:
                    await self._raised(refused)
                case Granted(output_tokens=None):
                    break
                case Granted(output_tokens=bought, percent=percent):
                    self._held = True
                    if percent >= WARN_PERCENT:
                        self._save(choice)
                    request = request.model_copy(update={"max_output_tokens": bought})
                    break
        self._asked = choice
        return request

    async def skipped(self) -> None:
        """Every model was skipped. Raises OverBudget when it was for want of a price, and what follows from that."""
        if self._unpriced is None:
            return
        event = BudgetExceededEvent(limit="price", action=self._unpriced.action)
        self._job.steps.announce(self._job.draft(event, self.key))
        await self._raised(self._unpriced)

    def failed(self, choice: Choice | None, request: ModelRequest, characters: int) -> None:
        """A try has failed after so much of an answer; what it took is estimated."""
        if choice is None:
            return
        tokens = Tokens(input=input_tokens(request), output=written_tokens(characters))
        wasted = self._till.wasted(choice, tokens)
        self._wasted[_name(choice)] = self._wasted.get(_name(choice), Usage()) + wasted

    async def let_go(self) -> None:
        """Frees what is reserved, but for what was wasted: the request is not answered now."""
        if self._held:
            wasted = self._wasted_in_all()
            await self._job.steps.reserve(
                Reservation(
                    self.key,
                    wasted_tokens=wasted.wasted_tokens,
                    wasted_nano_usd=wasted.wasted_nano_usd,
                )
            )

    def took(
        self, request: ModelRequest, completion: Completion, choice: Choice
    ) -> Mapping[str, Usage]:
        """What the request took with this answer, by model."""
        took = self._till.took(choice, tokens_of(request, completion))
        return self._with(choice, took)

    def spent(self) -> Mapping[str, Usage]:
        """What the request took that brought no answer, by model."""
        if self._asked is None:
            return dict(self._wasted)
        return self._with(self._asked, Usage(model_calls=1))

    def _with(self, choice: Choice, usage: Usage) -> Mapping[str, Usage]:
        name = _name(choice)
        return {**self._wasted, name: self._wasted.get(name, Usage()) + usage}

    def _wasted_in_all(self) -> Usage:
        return sum(self._wasted.values(), Usage())

    def _reservation(self, choice: Choice, request: ModelRequest, most: int) -> Reservation:
        read = input_tokens(request)
        price = self._till.prices.price(choice.provider, choice.model, read)
        wasted = self._wasted_in_all()
        return Reservation(
            self.key,
            input_tokens=read,
            most=most,
            least=min(LEAST_OUTPUT_TOKENS, most),
            input_nano_usd=ceil(price.input_nano * read) if price else None,
            thousand_output_nano_usd=ceil(price.output_nano * 1000) if price else None,
            model_calls=1,
            wasted_tokens=wasted.wasted_tokens,
            wasted_nano_usd=wasted.wasted_nano_usd,
        )

    def _save(self, choice: Choice) -> None:
        """Raises Cheaper, unless the model is the one that is asked first to save money."""
        if self.wanted.cheaper:
            return
        self.wanted = replace(self.wanted, cheaper=True)
        first = self._models.choices(self.wanted)[0]
        if (first.provider, first.model) != (choice.provider, choice.model):
            raise Cheaper("most of the budget is spent")

    async def _raised(self, refused: Refused) -> None:
        """Returns when a person gave more. Raises OverBudget, BudgetExceeded, or Parked until somebody answers."""
        if refused.action is OnExceeded.FAIL:
            raise BudgetExceeded(words_for(refused.what), what=refused.what)
        if refused.action is OnExceeded.ASK and refused.what != "price":
            await self.let_go()
            self._questions += 1
            again = f":{self._questions}" if self._questions > 1 else ""
            if await more(self._job, f"{self.key}/budget{again}", refused.what):
                return
        raise OverBudget(refused.what)


class Tries:
    """Sees each try of one request, and has those that failed counted before what came of them is void."""

    def __init__(self, tab: Tab, narrator: Narrator, request: ModelRequest) -> None:
        self._tab = tab
        self._narrator = narrator
        self._request = request
        self._told = narrator.hooks()
        self._counted = False

    def hooks(self) -> Hooks:
        """What the request calls."""
        return replace(
            self._told, on_retry=self._retried, on_routed=self._routed, prepare=self._prepare
        )

    def failed(self, *, refused: bool = False) -> None:
        """The last try has failed: who has neither begun to answer nor declined is not paid."""
        came = len(self._narrator.text) + self._narrator.beside
        if not self._counted and (came or refused):
            self._tab.failed(self._narrator.choice, self._request, came)
            self._counted = True

    def _retried(self, retry: Retry) -> None:
        self.failed()
        self._told.on_retry(retry)
        self._counted = False

    async def _prepare(self, choice: Choice, request: ModelRequest) -> ModelRequest:
        if choice != self._narrator.choice:
            self.failed()
        return await self._tab.prepare(choice, request)

    def _routed(self, choice: Choice) -> None:
        self._told.on_routed(choice)
        self._counted = False


async def tool_refused(job: Assignment, key: str) -> ToolAnswer | None:
    """What a tool call is answered that the budget does not allow; None when it is reserved. Raises BudgetExceeded."""
    verdict = await job.steps.reserve(Reservation(key, tool_calls=1))
    if isinstance(verdict, Granted):
        return None
    words = words_for(verdict.what)
    if verdict.action is OnExceeded.FAIL:
        raise BudgetExceeded(words, what=verdict.what)
    asked = verdict.action is OnExceeded.ASK
    answer = failed(TOOL_REFUSED, f"This call was not made. {words}", retryable=asked)
    return answer.model_copy(update={"trusted": True})


async def more(job: Assignment, key: str, limit: str) -> bool:
    """Asks a person to add to the limits of the run; whether one did. Raises Parked until somebody answers."""
    request = Request(
        kind=Kind.BUDGET,
        question=f"{words_for(limit)} Approve with what is added to its limits, or reject.",
        decisions=(Decision.APPROVE, Decision.REJECT),
        form={**More.model_json_schema(), "minProperties": 1},
        arguments={"limit": limit},
        agent=job.name,
        digest=digest_of("budget", key, limit),
    )
    answer = await job.steps.ask(Question(key, request))
    if not answer.approved:
        return False
    try:
        amounts = More.model_validate(answer.value).amounts()
    except ValidationError:
        # Nothing that can be read is nothing; the next refusal asks again.
        amounts = {}
    await job.steps.extend(key, amounts)
    return True


def _name(choice: Choice) -> str:
    return str(Reference(choice.provider, choice.model))
