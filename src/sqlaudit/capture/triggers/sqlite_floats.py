"""
How SQLite writes a float as Python's `repr` does: the shortest digits that are read as this float, and no other.

Neither SQLite's printf nor its reading of texts is exact in every version, its
arithmetic is: products and quotients of doubles are rounded as IEEE 754 says.
"""

from typing import Final

__all__ = ["ONCE", "float_repr"]

ONCE: Final = "LIMIT 1 OFFSET 0"
"""With an OFFSET, SQLite computes what a subquery names once, not wherever the name is used; and makes no table of it."""


def float_repr(value: str) -> str:
    """
    Return the expression of a finite float as Python shows it.

    If it has more than 15 digits, or is very large or small, it is brought to an
    integer of 17 digits, *high*, and what it lacks, *low*, by powers of ten that
    are exact. Of those digits as many are shown as must be to be nearer to it than
    half of the way to its neighbours, *up* and *down*.
    """
    quotient = "(high / power)"
    return f"""(WITH RECURSIVE
        -- far from where doubles end
        sized AS (SELECT abs({value}) AS size, 16 - CAST(substr(printf('%.15e', abs({value})), 19) AS INTEGER) AS places,
            CASE WHEN abs({value}) < 1e-200 THEN {_power_of_two(900)}
                WHEN abs({value}) > 1e200 THEN 1 / ({_power_of_two(240)}) ELSE 1.0 END AS unit {ONCE}),
        near AS (SELECT size * unit AS x, places, unit,
            CASE WHEN size < 1e-200 THEN 1 / ({_power_of_two(174)}) ELSE 0.0 END AS least FROM sized {ONCE}),
        gaps AS (SELECT x, places, unit, max(x + x * 1.2e-16 - x, least) AS up,
            max(x - (x - x * 1.2e-16), least) AS down FROM near {ONCE}),
        scaled (high, low, up, down, places, unit, half, shift, power) AS (
            -- a float whose last bit is 0 is meant by what lies in the middle, too
            SELECT x, 0.0, up, down, places, unit,
                CASE WHEN CAST(x / up AS INTEGER) % 2 = 0 THEN 0.5000000000001 ELSE 0.4999999999999 END,
                places, CAST('1e' || min(abs(places), 22) AS REAL) FROM gaps
            UNION ALL
            SELECT CASE WHEN shift > 0 THEN high * power ELSE {quotient} END,
                CASE WHEN shift > 0 THEN low * power + {_rest_of_product("high", "power")}
                    ELSE (high - {quotient} * power - {_rest_of_product(quotient, "power")} + low) / power END,
                CASE WHEN shift > 0 THEN up * power ELSE up / power END,
                CASE WHEN shift > 0 THEN down * power ELSE down / power END,
                places, unit, half, shift - max(-22, min(22, shift)),
                CAST('1e' || min(abs(shift - max(-22, min(22, shift))), 22) AS REAL)
            FROM scaled WHERE shift <> 0),
        whole AS (SELECT
            CAST(high / unit AS INTEGER) + CAST(low / unit + 64 AS INTEGER) - 64 AS whole,
            low / unit + 64 - CAST(low / unit + 64 AS INTEGER) AS part,
            up / unit * half AS up, down / unit * half AS down, places
            FROM scaled WHERE shift = 0 {ONCE}),
        tried (whole, part, up, down, places, step) AS (
            SELECT whole, part, up, down, places,
                CASE WHEN abs({value}) BETWEEN 1e-4 AND 1e15 THEN 10 ELSE 100000000000000000 END FROM whole
            UNION ALL SELECT whole, part, up, down, places, step / 10 FROM tried WHERE step > 1),
        found AS (SELECT whole / step * step + step
                * (below > down OR above <= up AND (above < below OR above = below AND whole / step % 2)) AS digits,
            places
            FROM (SELECT *, whole % step + part AS below, step - whole % step - part AS above FROM tried)
            WHERE below <= down OR above <= up {ONCE}),
        parts AS (SELECT length(digits) - 1 - places AS exponent, rtrim(digits, '0') AS digits FROM found {ONCE}),
        exact AS (SELECT CASE
            WHEN exponent NOT BETWEEN -4 AND 15 THEN rtrim(substr(digits, 1, 1) || '.' || substr(digits, 2), '.')
                || printf('e%+03d', exponent)
            WHEN exponent < 0 THEN '0.' || substr('000', 1, -exponent - 1) || digits
            ELSE substr(digits || '000000000000000', 1, exponent + 1) || '.'
                || coalesce(nullif(substr(digits, exponent + 2), ''), '0') END AS shown FROM parts)
        SELECT CASE WHEN number < 0 THEN '-' ELSE '' END || CASE
            WHEN size = 0 THEN '0.0'
            WHEN size BETWEEN 1e-4 AND 1e15 AND CAST(replace(shown, '.', '') AS INTEGER)
                / CAST('1e' || (length(shown) - instr(shown, '.')) AS REAL) = size THEN shown
            ELSE (SELECT shown FROM exact) END
        FROM (SELECT {value} AS number, abs({value}) AS size, printf('%!.15g', abs({value})) AS shown))"""


def _power_of_two(exponent: int) -> str:
    """A double that no version reads wrong."""
    return " * ".join(["1.0", *["(1 << 60)"] * (exponent // 60), f"(1 << {exponent % 60})"])


def _head(value: str) -> str:
    """The upper half of a double's digits."""
    return f"(134217729.0 * {value} - (134217729.0 * {value} - {value}))"


def _rest_of_product(one: str, other: str) -> str:
    """What a product of doubles loses, exactly (Dekker 1971)."""
    head, other_head = _head(one), _head(other)
    tail, other_tail = f"({one} - {head})", f"({other} - {other_head})"
    return (
        f"({head} * {other_head} - {one} * {other} + {head} * {other_tail} + {tail} * {other_head} "
        f"+ {tail} * {other_tail})"
    )
