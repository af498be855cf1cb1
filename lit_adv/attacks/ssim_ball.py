"""Images whose global SSIM terms with a given one are bounded, and the farthest of them along a direction."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

C1, C2 = 0.01**2, 0.03**2  # SSIM's constants for values in [0, 1]


def similarities(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM's luminance and structure terms with the statistics of whole vectors, without a window.

    ``S1 = (2 mu_x mu_y + c1) / (mu_x^2 + mu_y^2 + c1)``, ``S2 = (2 s_xy + c2) / (s_x^2 + s_y^2 + c2)`` with unbiased
    variances.

    Args:
        x: ``(B, N)`` vectors in [0, 1].
        y: ``(B, N)``.

    Returns:
        S1 and S2, ``(B,)``.
    """
    mu_x, mu_y = x.mean(1), y.mean(1)
    a, b = y - mu_y[:, None], x - mu_x[:, None]
    scaled = (x.shape[1] - 1) * C2
    # 1 - S, since what is asked for lies as near to 1 as rounding
    luminance = 1 - (mu_x - mu_y).square() / (mu_x.square() + mu_y.square() + C1)
    structure = 1 - (a - b).square().sum(1) / (a.square().sum(1) + b.square().sum(1) + scaled).clamp(min=_tiny(x))
    return luminance, structure


class SSIMBall(NamedTuple):
    """The y with ``S1(x, y) >= 1 - eps1^2`` and ``S2(x, y) >= 1 - eps2^2``, as bounds on the mean and a sphere.

    In terms of the mean m of y and of ``a = y - m`` they are ``low <= m <= high`` and ``||a - centre|| <= radius``
    (S000, equations 12 and 13, with the "- 1" that is missing in print, and with ``(N - 1) c2`` for c2).

    Attributes:
        mean: ``(B, 1)``, of x.
        low: ``(B, 1)``, least mean.
        high: ``(B, 1)``, largest mean.
        centre: ``(B, N)``, of mean 0; 0 at coordinates that stay as they are.
        radius: ``(B, 1)``.
        size: ``(B, 1)``, how many coordinates may change.
    """

    mean: Tensor
    low: Tensor
    high: Tensor
    centre: Tensor
    radius: Tensor
    size: Tensor

    @classmethod
    def around(cls, x: Tensor, eps1: float, eps2: float, inside: Tensor | None = None) -> SSIMBall:
        """The ball around each row of ``x``, ``(B, N)``, over the coordinates ``inside`` (0 or 1; None: all)."""
        size = torch.full_like(x[:, :1], x.shape[1]) if inside is None else inside.sum(1, keepdim=True).clamp(min=1)
        mean = _total(x if inside is None else x * inside) / size
        b = x - mean
        if inside is not None:
            b *= inside
        # (eta^2 - 1) ||b||^2 + eta eps^2 c, eta = 1 / (1 - eps^2)
        eta1, eta2 = 1 / (1 - eps1**2), 1 / (1 - eps2**2)
        low = high = mean
        if eps1 > 0:
            half = ((eta1 * eps1) ** 2 * (2 - eps1**2) * mean.square() + eta1 * eps1**2 * C1).sqrt()
            low, high = eta1 * mean - half, eta1 * mean + half
        radius = (eta2 * eps2) ** 2 * (2 - eps2**2) * _dot(b, b) + eta2 * eps2**2 * C2 * (size - 1)
        return cls(mean, low, high, b.mul_(eta2), radius.sqrt_(), size)


def farthest(
    x: Tensor,
    direction: Tensor,
    *,
    eps1: float = 0.0,
    eps2: float,
    box: bool = False,
    relaxed: bool = False,
    inside: Tensor | None = None,
    stay: Tensor | None = None,
) -> Tensor:
    """``argmax direction . y`` over the SSIM ball around x; problems (8) and, for ``eps1 = 0``, (9) of S000, exactly.

    In closed form, ``y = m + k22 + sqrt(k21) Pg / ||Pg||`` with ``P`` the projection that takes the mean away and m the
    end of its range on the side of ``sum(g)``. With the box by active sets, and by bisection where those do not settle.

    Args:
        x: ``(B, N)`` vectors in [0, 1].
        direction: ``(B, N)``, g; its scale does not matter.
        eps1: Bound on the luminance, ``S1 >= 1 - eps1^2``, in [0, 1).
        eps2: Bound on the structure, ``S2 >= 1 - eps2^2``, in (0, 1).
        box: Keep ``0 <= y <= 1``.
        relaxed: Along g rather than Pg, equation (10): the mean moves with g, while y stays in the sphere around m.
        inside: ``(B, N)`` zeros and ones: the only coordinates that count and change.
        stay: ``(B, N)``, what comes back where there is nothing to follow (None: x): a gradient that is 0, or constant
            unless relaxed; a sphere of radius 0 (one coordinate); with the box a black or white x.

    Returns:
        ``(B, N)``.
    """
    stay = x if stay is None else stay
    # on the CPU in parts that stay in the cache
    rows = max(1, torch.get_num_threads() * 2**16 // max(x.shape[1], 1)) if x.device.type == "cpu" else max(len(x), 1)
    with torch.no_grad():
        found = []
        for part in (slice(first, first + rows) for first in range(0, max(len(x), 1), rows)):
            kept = None if inside is None else inside[part]
            found.append(_farthest(x[part], direction[part], kept, stay[part], eps1, eps2, box, relaxed))
        return torch.cat(found)


def _farthest(
    x: Tensor,
    direction: Tensor,
    inside: Tensor | None,
    stay: Tensor,
    eps1: float,
    eps2: float,
    box: bool,
    relaxed: bool,
) -> Tensor:
    ball = SSIMBall.around(x, eps1, eps2, inside)
    g = direction if inside is None else direction * inside
    # by its largest element first, or the squares of a saturated model's gradient leave the number range
    g = g / g.abs().amax(1, keepdim=True).clamp_(min=_tiny(x))
    slope = _total(g)
    along = g if relaxed else g - slope / ball.size
    if inside is not None and not relaxed:
        along *= inside
    length = _dot(along, along).sqrt()
    # of a constant g rounding leaves something
    follow = (length > 8 * torch.finfo(x.dtype).eps * ball.size.sqrt()) & (ball.radius > 0)
    if box:
        follow &= (ball.mean > 0) & (ball.mean < 1)
        g = g / length.clamp(min=_tiny(x))
        point = _in_box(ball, g, relaxed, eps1 > 0, inside, follow)
    else:
        m = ball.mean if eps1 == 0 else torch.where(slope > 0, ball.high, torch.where(slope < 0, ball.low, ball.mean))
        point = (along * (ball.radius / length.clamp(min=_tiny(x)))).add_(ball.centre).add_(m)
    if inside is not None:
        follow = follow & (inside > 0)
    return torch.where(follow, point, stay)


def _in_box(
    ball: SSIMBall, g: Tensor, relaxed: bool, mean_moves: bool, inside: Tensor | None, follow: Tensor
) -> Tensor:
    """The farthest point of ball and box; rows that do not ``follow`` may come back as anything finite."""
    share = _total(g) / ball.size
    kind = _SPHERE if relaxed else _SLICE
    if not mean_moves:
        return _Clipped.about(ball, ball.mean, g, inside, kind).solve(follow)
    # the optimal value is concave in the mean: an end from which it would rise further is the best mean
    up = share >= 0
    end = torch.where(up, ball.high, ball.low).clamp(0, 1)
    clipped = _Clipped.about(ball, end, g, inside, kind)
    t, shift, settled = clipped.active_set(sweeps=12)  # an end too far for the sphere never settles
    point = clipped.point(t, shift)
    slope = clipped.steps(t, shift).sum(1, keepdim=True) if relaxed else t * share - shift
    unsettled = (follow & ~(settled & torch.where(up, slope >= 0, slope <= 0)))[:, 0].nonzero()[:, 0]
    if len(unsettled):
        # otherwise the best mean without bounds is within them, or beyond them, and then the nearer end is the best
        # where few coordinates are clipped, the mean hangs on small differences of large sums
        wide = g.dtype if g.device.type == "mps" else torch.float64
        part = SSIMBall(*(each[unsettled].to(wide) for each in ball))
        g, end, inside = g[unsettled].to(wide), end[unsettled].to(wide), None if inside is None else inside[unsettled]
        follow = torch.ones_like(follow[unsettled])
        best = _Clipped.about(part, part.mean, g, inside, _FREE).solve(follow, end - part.mean)
        m = _total(best if inside is None else best * inside) / part.size
        beyond = (m < part.low) | (m > part.high)
        held = _Clipped.about(part, m.clamp(part.low, part.high), g, inside, kind).solve(beyond)
        point[unsettled] = torch.where(beyond, held, best).to(point.dtype)
    return point


# what ties mean and sphere together
_SLICE, _SPHERE, _FREE = "the mean is given", "the sphere alone", "the sphere's centre moves with the mean"


class _Clipped(NamedTuple):
    """``max g . y`` over the box and a sphere: by the KKT conditions ``y = clip(c + shift + t g, 0, 1)``.

    Two numbers a row are unknown. The step length t > 0 follows from ``||y - c'|| = r``; the shift from ``mean(y) = m``
    where the mean is given (c' = c has the mean m), from ``mean(y) = m + shift`` where the sphere moves with the mean
    (c' = c + shift), and it is 0 where there is the sphere alone (c' = c).
    """

    c: Tensor
    g: Tensor
    low: Tensor
    high: Tensor
    radius: Tensor
    size: Tensor
    inside: Tensor | None
    kind: str

    @classmethod
    def about(cls, ball: SSIMBall, m: Tensor, g: Tensor, inside: Tensor | None, kind: str) -> _Clipped:
        c = ball.centre + m
        if kind is _SLICE:
            g = g - _total(g) / ball.size
        if inside is None:
            return cls(c, g, -c, 1 - c, ball.radius, ball.size, None, kind)
        # outside there is no room: such coordinates add nothing to any sum
        return cls(c, g * inside, -c * inside, (1 - c) * inside, ball.radius, ball.size, inside > 0, kind)

    def take(self, rows: Tensor) -> _Clipped:
        parts: list[Any] = [each[rows] if isinstance(each, Tensor) else each for each in self]
        return _Clipped(*parts)

    def steps(self, t: Tensor, shift: Tensor) -> Tensor:
        """``y - c``."""
        return (t * self.g).add_(shift).clamp_(self.low, self.high)

    def point(self, t: Tensor, shift: Tensor) -> Tensor:
        return (self.c + self.steps(t, shift)).clamp_(0, 1)

    def solve(self, wanted: Tensor, start: Tensor | None = None) -> Tensor:
        """The optimal points, looked for from the shift ``start``; rows not ``wanted`` may be anything finite."""
        t, shift, settled = self.active_set(start)
        point = self.point(t, shift)
        rest = (wanted & ~settled)[:, 0].nonzero()[:, 0]
        if len(rest):
            point[rest] = self.take(rest).bisect()
        return point

    def active_set(self, start: Tensor | None = None, sweeps: int = 50) -> tuple[Tensor, Tensor, Tensor]:
        """t, shift and whether they solve the row.

        With the coordinates known that are not clipped (F), those that are (with their steps d) and ``q = 1 / |F|``,
        0 or ``-1 / (N - |F|)`` for the three kinds: ``t^2 = (r^2 - sum d^2 - q (sum d)^2) / (sum_F g^2 - q (sum_F
        g)^2)`` and ``shift = -q (t sum_F g + sum d)``. Where these give the same coordinates again, they are optimal.
        """
        t = self.radius / _dot(self.g, self.g).sqrt().clamp(min=_tiny(self.g))
        shift = torch.zeros_like(t) if start is None else start
        # written over again and again: to allocate it anew would take longer than to compute what it holds
        space = self.g.new_empty(4, *self.g.shape)
        for sweep in range(sweeps):
            free, before = space[2 + sweep % 2], space[3 - sweep % 2]
            t, shift = self._sweep(t, shift, space[:2], free)
            if sweep and torch.equal(free, before):
                break
        return t, shift, self._solved(t, shift)

    def _sweep(self, t: Tensor, shift: Tensor, space: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """The next t and shift; fills ``free`` with ones at the coordinates that these are not clipped at."""
        y, d = space
        torch.mul(self.g, t, out=y).add_(shift)
        torch.clamp(y, self.low, self.high, out=d)
        torch.eq(y, d, out=free)
        count = _total(free if self.inside is None else free.mul_(self.inside))
        d1, d2 = _total(d), _total(torch.mul(d, d, out=y))
        g1 = _total(torch.mul(free, self.g, out=y))
        g2 = _total(y.mul_(self.g))
        d1 = d1 - (count * shift + t * g1)
        d2 = d2 - (count * shift.square() + 2 * shift * t * g1 + t.square() * g2)
        if self.kind is _SPHERE:
            q = torch.zeros_like(count)
        else:
            q = (1 / count.clamp(min=1)) if self.kind is _SLICE else -1 / (self.size - count).clamp(min=1)
        room = self.radius.square() - d2 - q * d1.square()
        steep = g2 - q * g1.square()
        tiny = _tiny(t)
        new_t = torch.where((room > 0) & (steep > tiny), (room / steep.clamp(min=tiny)).clamp(min=0).sqrt(), 0.5 * t)
        return new_t, -q * (new_t * g1 + d1)

    def _length(self, d: Tensor, shift: Tensor) -> Tensor:
        """``||y - c'||``."""
        if self.kind is _FREE:
            d = d - shift if self.inside is None else (d - shift) * self.inside
        return _dot(d, d).sqrt()

    def _off(self, d: Tensor, shift: Tensor) -> Tensor:
        """By how much the mean is too large, not decreasing in the shift for the slice, not increasing for the free."""
        mean = _total(d) / self.size
        return mean - shift if self.kind is _FREE else mean

    def _solved(self, t: Tensor, shift: Tensor) -> Tensor:
        tolerance = 1e-10 if t.dtype == torch.float64 else 1e-5
        d = self.steps(t, shift)
        on_sphere = (self._length(d, shift) - self.radius).abs() <= tolerance * self.radius
        on_sphere &= (t > 0) & t.isfinite()
        if self.kind is _SPHERE:
            return on_sphere
        # no bound hangs on the shift of a sphere that moves with the mean
        return on_sphere & (self._off(d, shift).abs() <= tolerance * (1 if self.kind is _FREE else 0.1))

    def bisect(self) -> Tensor:
        """The optimal points where the active set does not settle: the length grows with t, the mean with the shift."""
        limit = self._limit()
        lower = torch.zeros_like(self.radius)
        upper = self.radius / _dot(self.g, self.g).sqrt()
        for _ in range(64):
            # g has length 1: beyond 1e8 only the order of its elements counts, and rounding
            short = (self._length_at(upper) < self.radius) & (upper < 1e8)
            lower, upper = torch.where(short, upper, lower), torch.where(short, 2 * upper, upper)
            if not bool(short.any()):
                break
        for _ in range(60 if upper.dtype == torch.float64 else 30):
            middle = 0.5 * (lower + upper)
            short = self._length_at(middle) < self.radius
            lower, upper = torch.where(short, middle, lower), torch.where(short, upper, middle)
        t = lower
        shift = self._shift(t)
        point = self.point(t, shift)
        space = self.g.new_empty(3, *self.g.shape)
        better_t, better_shift = self._sweep(t, shift, space[:2], space[2])  # exact, with the right ones clipped
        point = torch.where(self._solved(better_t, better_shift), self.point(better_t, better_shift), point)
        return torch.where(self._length(limit - self.c, torch.zeros_like(t)) <= self.radius, limit, point)

    def _length_at(self, t: Tensor) -> Tensor:
        shift = self._shift(t)
        return self._length(self.steps(t, shift), shift)

    def _shift(self, t: Tensor) -> Tensor:
        """The shift that goes with t."""
        if self.kind is _SPHERE:
            return torch.zeros_like(t)
        reach = t * self.g.abs().amax(1, keepdim=True) + self.c.abs().amax(1, keepdim=True) + 1
        lower, upper = -reach, reach
        for _ in range(64 if t.dtype == torch.float64 else 32):
            middle = 0.5 * (lower + upper)
            high = self._off(self.steps(t, middle), middle) > 0
            if self.kind is _FREE:
                high = ~high
            lower, upper = torch.where(high, lower, middle), torch.where(high, middle, upper)
        return 0.5 * (lower + upper)

    def _limit(self) -> Tensor:
        """Where the points go as t grows: of the farthest points of the box alone the one that is nearest to c.

        Ones along the largest g; of the given mean, where it is given. What ties with the last of them, and what has
        no g at all, is not told apart by g.
        """
        if self.kind is not _SLICE:
            return torch.where(self.g == 0, self.c.clamp(0, 1), (self.g > 0).to(self.g.dtype))
        inside = torch.ones_like(self.g, dtype=torch.bool) if self.inside is None else self.inside
        total = _total(self.c * inside)
        worth = self.g.masked_fill(~inside, -torch.inf)
        last = total.long().minimum(self.size.long() - 1)
        tie = worth.sort(dim=1, descending=True).values.gather(1, last)
        full, tied = worth > tie, worth == tie
        left = total - _total(full.to(self.g.dtype))
        lower, upper = -self.c.amax(1, keepdim=True), 1 - self.c.amin(1, keepdim=True)
        for _ in range(64 if self.g.dtype == torch.float64 else 32):
            middle = 0.5 * (lower + upper)
            high = _total((self.c + middle).clamp_(0, 1) * tied) > left
            lower, upper = torch.where(high, lower, middle), torch.where(high, middle, upper)
        return torch.where(tied, (self.c + 0.5 * (lower + upper)).clamp_(0, 1), full.to(self.g.dtype))


def _total(values: Tensor) -> Tensor:
    return values.sum(1, keepdim=True)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    # not by matmul, whose float32 sums are off by 1e-4 for large images
    return (a * b).sum(1, keepdim=True)


def _tiny(like: Tensor) -> float:
    return torch.finfo(like.dtype).tiny
