#!/usr/bin/env python3
"""Security estimates of every parameter set of `lattice/src/params.rs`: writes the table beside it.

    python3 lattice/security/estimate.py > lattice/security/table.md

Standard library only, a few minutes. Sets have a uniform ternary secret of n coefficients, errors of deviation 3.24 and
as many samples as an attacker likes. Formulas, each for the best choice of its parameters:

usvp     unique shortest vector in Bai and Galbraith's embedding, success when sqrt(beta) sigma <= delta^(2 beta - d - 1)
         vol^(1/d) (Alkim, Ducas, Poeppelmann, Schwabe, eprint 2015/1092; Albrecht, Goepfert, Virdia, Wunderer 2017/815)
decode   reduction by block size beta, then one sieve of dimension eta around the target in the last projected lattice
         (Liu, Nguyen 2013; `primal_bdd` of the lattice estimator, Albrecht, Player, Scott, eprint 2015/046)
drop     coordinates guessed to be zero, then usvp (Albrecht, eprint 2017/047, section 5)
hybrid   Howgrave-Graham 2007: zeta coordinates by meeting in the middle, the rest by nearest planes after reduction.
         Collisions in the middle are taken as sure, and a nearest plane as one operation: both help the attacker
dual     one sieve gives 2^(0.2075 beta) short vectors of the dual; as many repetitions as the advantage asks for
         (Alkim et al.; lengths after Albrecht 2017/047)
dual+    the same with zeta coordinates guessed by meeting in the middle (Albrecht 2017/047; Cheon, Hhan, Hong, Son,
         eprint 2019/1114; Espitau, Joux, Kharchenko, eprint 2020/515): reduction, and sqrt(3^zeta) times the vectors
         that separate 3^zeta hypotheses, as MATZOV (2022) counts them

Costs of block size beta: core-SVP classical 0.292 beta, quantum 0.265 beta, without any polynomial factor; gates, the
fit of MATZOV's list decoding with dimensions for free and 5.46 (d - beta) calls, which the lattice estimator takes by
default. Searches count one operation a candidate; a quantum search in the middle has the third root.
"""

import math

LN2 = math.log(2)
SIGMA_S = math.sqrt(2 / 3)
SIGMA_E = math.sqrt(21 / 2)


def ln_delta(beta):
    return math.log(beta / (2 * math.pi * math.e) * (math.pi * beta) ** (1 / beta)) / (2 * (beta - 1))


def gates(beta, d):
    free = max(0.0, beta * math.log(4 / 3) / math.log(beta / (2 * math.pi * math.e)))
    return 0.2988026 * (beta - free) + 26.0111 + math.log2(5.46 * max(d - beta, 1))


MODELS = {
    "classical": (lambda beta, d: 0.292 * beta, 0.5),
    "quantum": (lambda beta, d: 0.265 * beta, 1 / 3),
    "gates": (gates, 0.5),
}


def add(a, b):
    """log2 of the sum of two costs."""
    high, low = max(a, b), min(a, b)
    return high + math.log2(1 + 2 ** max(low - high, -60))


def samples(n, logq, beta, sigma_e, sigma_s, most):
    """How many samples suit a primal lattice: dimension about sqrt(n (ln q - nu) / ln delta)."""
    nu = math.log(sigma_e / sigma_s)
    m = int(math.sqrt(max(1.0, n * (logq * LN2 - nu) / ln_delta(beta))) - n)
    return max(1, min(most, m))


def last_norm(beta, back, n, logq, sigma_e, sigma_s, most):
    """ln of the Gram-Schmidt norm `back` places before the end, and the dimension, for the best number of samples."""
    nu, best = math.log(sigma_e / sigma_s), None
    m0, ld = samples(n, logq, beta, sigma_e, sigma_s, most), ln_delta(beta)
    for m in sorted({max(1, min(most, m0 + s)) for s in (-40, -2, 0, 2, 40)}):
        d = m + n + 1
        norm = (2 * back - d - 1) * ld + (m * logq * LN2 + n * nu) / d
        if best is None or norm > best[0]:
            best = (norm, d)
    return best


def smallest(works, low, high):
    """The smallest number in (low, high] that works, by halving."""
    while high - low > 1:
        middle = (low + high) // 2
        if works(middle):
            high = middle
        else:
            low = middle
    return high


def usvp_beta(n, logq, sigma_e=SIGMA_E, sigma_s=SIGMA_S, most=1 << 20):
    def works(beta):
        norm, d = last_norm(beta, beta, n, logq, sigma_e, sigma_s, most)
        return d > beta and norm >= math.log(math.sqrt(beta) * sigma_e)
    high = 64
    while not works(high):
        high += high // 8
    beta = smallest(works, 50, high)
    return beta, last_norm(beta, beta, n, logq, sigma_e, sigma_s, most)[1]


def usvp(n, logq, model):
    beta, d = usvp_beta(n, logq)
    return MODELS[model][0](beta, d), f"beta {beta}"


def decode(n, logq, model):
    price, top, best = MODELS[model][0], usvp_beta(n, logq)[0], None
    for beta in range(top - 60, top + 1):
        def works(eta):
            return last_norm(beta, eta, n, logq, SIGMA_E, SIGMA_S, 1 << 20)[0] >= math.log(math.sqrt(eta) * SIGMA_E)
        eta = smallest(works, beta - 1, top + 400)
        d = last_norm(beta, eta, n, logq, SIGMA_E, SIGMA_S, 1 << 20)[1]
        # The last sieve is a single call.
        cost = add(price(beta, d), price(eta, eta + 1) if model != "gates" else gates(eta, eta + 1) - math.log2(5.46))
        if best is None or cost < best[0]:
            best = (cost, f"beta {beta}, eta {eta}")
    return best


def drop(n, logq, model):
    price, best = MODELS[model][0], None
    for k in range(0, n // 8, 16):
        beta, d = usvp_beta(n - k, logq)
        cost = price(beta, d) + k * math.log2(3)
        if best is None or cost < best[0]:
            best = (cost, f"beta {beta}, dropped {k}")
    return best


def nearest_planes(beta, n, logq):
    """log2 of the chance that nearest planes find the target, and the dimension: a lattice without the target."""
    nu, ld = math.log(SIGMA_E / SIGMA_S), ln_delta(beta)
    m = samples(n, logq, beta, SIGMA_E, SIGMA_S, 1 << 20)
    d = m + n
    volume = (m * logq * LN2 + n * nu) / d
    chance = 0.0
    for i in range(d):  # from the last vector, the shortest, on
        norm = math.exp(volume + (2 * i - d + 1) * ld)
        x = norm / (2 * math.sqrt(2) * SIGMA_E)
        if x > 6:
            break
        chance += math.log2(max(math.erf(x), 1e-300))
        if chance < -400:
            break
    return chance, d


def hybrid(n, logq, model):
    (price, root), top, best = MODELS[model], usvp_beta(n, logq)[0], None
    for zeta in range(0, min(n // 2, 400), 8):
        for beta in range(max(60, top - 100), top + 200, 4):
            # No cheaper than its reduction.
            if best and price(beta, n) > best[0]:
                break
            chance, d = nearest_planes(beta, n - zeta, logq)
            cost = add(price(beta, d), root * zeta * math.log2(3)) - chance
            if best is None or cost < best[0]:
                best = (cost, f"beta {beta}, zeta {zeta}")
    return best


def dual_with(n, logq, model, guesses):
    (price, root), best = MODELS[model], None
    lq, scale = logq * LN2, math.log(SIGMA_S / SIGMA_E)
    top = usvp_beta(n, logq)[0]
    for zeta in guesses:
        kept = n - zeta
        for beta in range(max(60, top - 120), top + 200, 2):
            if best and price(beta, n) > best[0]:
                break
            ld = ln_delta(beta)
            d = max(kept + 1, int(math.sqrt(max(1.0, kept * (lq + scale) / ld))))
            length = (d - 1) * ld + kept * (lq + scale) / d
            if zeta:
                length += math.log(4 / 3) / 2
            x = length + math.log(SIGMA_E) - lq
            if x > 3:
                continue
            advantage = 2 * math.pi ** 2 * math.exp(2 * x) / LN2  # bits of its inverse
            needed = 2 * advantage + (math.log2(max(1.0, 2 * zeta * math.log(3))) if zeta else 0)
            repeat = max(0.0, needed - 0.2075 * beta)
            search = root * zeta * math.log2(3) + needed if zeta else 0
            cost = add(price(beta, d) + repeat, search)
            if best is None or cost < best[0]:
                best = (cost, f"beta {beta}, zeta {zeta}" if zeta else f"beta {beta}")
    return best


def dual(n, logq, model):
    return dual_with(n, logq, model, [0])


def dual_guess(n, logq, model):
    return dual_with(n, logq, model, range(8, min(n // 2, 400), 8))


ATTACKS = {"usvp": usvp, "decode": decode, "drop": drop, "hybrid": hybrid, "dual": dual, "dual+": dual_guess}

# Id, what it is for, n, log2 of the modulus; ids and sizes as in lattice/src/params.rs.
SETS = [
    (1, "weights, ring 40; randomising below it", 4096, 88),
    (2, "weights, ring 44, short", 4096, 96),
    (3, "weights, ring 44", 8192, 96),
    (4, "weights, ring 48", 8192, 104),
    (5, "weights, ring 52", 8192, 112),
    (6, "weights, ring 56", 8192, 120),
    (7, "weights, ring 60", 8192, 128),
    (33, "tiles and switching keys, ring 40", 4096, 88),
    (34, "tiles and switching keys, ring 64", 8192, 150),
    (65, "slots", 8192, 150),
]


def main():
    print("# Security of the parameter sets\n")
    print("Written by `estimate.py` beside it, which names every formula and its source.")
    print("Every entry is log2 of the cost of the best attack of its kind, in core-SVP classical / core-SVP quantum / gates.\n")
    print("| id | for | n | log q | " + " | ".join(ATTACKS) + " | least |")
    print("|" + "---|" * (5 + len(ATTACKS)))
    for identity, what, n, logq in SETS:
        cells, least = [], {model: math.inf for model in MODELS}
        for attack in ATTACKS.values():
            found = {model: attack(n, logq, model) for model in MODELS}
            cells.append(" / ".join(f"{found[model][0]:.0f}" for model in MODELS) + f" ({found['classical'][1]})")
            least = {model: min(least[model], found[model][0]) for model in MODELS}
        total = " / ".join(f"{math.floor(least[model])}" for model in MODELS)
        print(f"| {identity} | {what} | {n} | {logq} | " + " | ".join(cells) + f" | {total} |", flush=True)
    print("\n## What the formulas give where others are published\n")
    print("Kyber's submission states core-SVP 118 / 107 for its first set and 183 / 166 for its second.")
    for name, n, sigma, m in (("first", 512, math.sqrt(1.5), 768), ("second", 768, 1.0, 1024)):
        beta, d = usvp_beta(n, math.log2(3329), sigma, sigma, m)
        print(f"By usvp here its {name} set has beta {beta}: {0.292 * beta:.0f} / {0.265 * beta:.0f}, {gates(beta, d):.0f} gates.")
    print("The standard of homomorphic encryption (2018) allows log q 109 at n = 4096 and 218 at 8192 for 128 classical bits;")
    print("Bossuat and others (eprint 2024/463) 106 and 214.")
    for n, logq in ((4096, 109), (4096, 106), (8192, 218), (8192, 214)):
        beta, d = usvp_beta(n, logq)
        table = 0.292 * beta + 16.4 + math.log2(8 * d)
        print(f"By usvp here n = {n}, log q {logq} has beta {beta}, {table:.0f} bits in the standard's own model and {gates(beta, d):.0f} gates.")


if __name__ == "__main__":
    main()
