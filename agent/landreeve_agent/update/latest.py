"""By when a version on probation is judged at the latest. Pure."""

from datetime import timedelta

from landreeve.wire.strategy import Strategy

from landreeve_agent.store.stamps import moment, stamp
from landreeve_agent.update.directing import Role, Stage, stages
from landreeve_agent.update.standing import MODEL, Order, Phase, State


def latest_end(state: State) -> str:
    """When the probation of a model is over at the latest, as a stamp, by the bounds of its order
    (`landreeve_agent.update.stepping`); empty when it is not on probation, or when its strategy asks for rows beyond
    the probation's and sets no bound of its own: then the traffic decides.
    """
    order = state.order
    if state.phase is not Phase.PROBATION or order is None or order.component != MODEL or not state.since:
        return ""
    began, strategy = moment(state.since), order.strategy
    ends = [began + timedelta(seconds=strategy.max_s)] if strategy.max_s > 0 and state.good is not None else []
    if state.good is None or not _traffic_decides(order):
        row = stages(strategy, first=state.good is None)
        step = min(state.step, len(row) - 1)
        # What shares is judged by one comparison since the beginning; a stage of another kind begins with none.
        shares = row[step].role is Role.SHARES
        since = began if shares or not state.step_since else moment(state.step_since)
        ends.append(since + timedelta(seconds=_left_s(order, row[step:])))
    return stamp(min(ends)) if ends else ""


def _traffic_decides(order: Order) -> bool:
    strategy = order.strategy
    several = strategy.kind == "canary" and strategy.min_rows > 0  # rows of the last step alone
    return strategy.step_rows > 0 or strategy.min_rows > order.probation.min_rows or several


def _left_s(order: Order, row: tuple[Stage, ...]) -> float:
    """Seconds that these stages last at most, from where the first one's evidence begins."""
    sharing = sum(stage.role is Role.SHARES for stage in row)
    together = _most_s(order, Role.SHARES) + len(order.strategy.shares) * order.strategy.step_s if sharing else 0.0
    return together + sum(_most_s(order, stage.role) for stage in row if stage.role is not Role.SHARES)


def _most_s(order: Order, role: Role) -> float:
    """Seconds that one stage lasts at most: at the probation's end too little evidence is an end as well."""
    strategy, most = order.strategy, order.probation.max_s
    if role is Role.STANDS_BY:
        return min(strategy.min_s, most)
    return max(most, _least_s(strategy), order.probation.min_s)


def _least_s(strategy: Strategy) -> float:
    return max(strategy.min_s, strategy.step_s)
