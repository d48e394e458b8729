"""How a person and a script see a verdict on a plan. The JSON keys are a contract with scripts, sizes in bytes."""

from vrambroker.broker.plan.verdict import Elastic, Row, Verdict
from vrambroker.broker.sizes import size_text


def verdict_json(verdict: Verdict) -> dict[str, object]:
    """Return what `broker plan --json` prints."""
    plan = verdict.plan
    return {
        "fits": verdict.fits,
        "order": plan.phases.order.value,
        "capacity_bytes": plan.capacity_bytes,
        "host_budget_bytes": plan.host_budget_bytes,
        "phases": [{"name": row.peak.phase, **_numbers(row)} for row in verdict.rows if not row.peak.after],
        "changes": [
            {"from": row.peak.after, "to": row.peak.phase, **_numbers(row)} for row in verdict.rows if row.peak.after
        ],
        "elastic": [
            {"tag": str(one.tag), "size_bytes": one.tag.size_bytes, "largest_bytes": one.largest_bytes}
            for one in verdict.elastic
        ],
        "left_alone": [str(tag) for tag in plan.left_alone()],
    }


def _numbers(row: Row) -> dict[str, int]:
    return {
        "device_bytes": row.peak.device_bytes,
        "host_bytes": row.peak.host_bytes,
        "device_over_bytes": row.device_over_bytes,
        "host_over_bytes": row.host_over_bytes,
    }


def verdict_text(verdict: Verdict) -> str:
    """Return what `broker plan` prints."""
    plan = verdict.plan
    device, host = _there(plan.capacity_bytes), _there(plan.host_budget_bytes)
    table = [("", "device", "host"), *(_cells(row) for row in verdict.rows)]
    wide, middle = (max(len(cells[column]) for cells in table) for column in (0, 1))
    lines = [f"order {plan.phases.order.value}; on the device {device}, on the host {host}", ""]
    lines.extend(f"{name:<{wide}}  {first:<{middle}}  {second}".rstrip() for name, first, second in table)
    lines.extend(_elastic_line(one) for one in verdict.elastic)
    alone = plan.left_alone()
    if alone:
        lines.append(f"in no phase, so always there: {', '.join(map(str, alone))}")
    return "\n".join(lines)


def _there(size_bytes: int | None) -> str:
    return "as much as it takes" if size_bytes is None else f"there are {size_text(size_bytes)}"


def _cells(row: Row) -> tuple[str, str, str]:
    peak = row.peak
    return (
        str(peak),
        _cell(peak.device_bytes, row.device_over_bytes),
        _cell(peak.host_bytes, row.host_over_bytes),
    )


def _cell(size_bytes: int, over_bytes: int) -> str:
    return size_text(size_bytes) + (f" ({size_text(over_bytes)} too much)" if over_bytes else "")


def _elastic_line(one: Elastic) -> str:
    planned = f"{size_text(one.tag.size_bytes)} planned"
    if one.largest_bytes is None:
        return f"{one.tag} may be of any size, since nobody said how much there is ({planned})"
    if not one.largest_bytes:
        return f"{one.tag} fits in no size ({planned})"
    return f"{one.tag} fits up to {size_text(one.largest_bytes)} ({planned})"
