//! Groups of like heads, all of the same size.
//!
//! k-medoids (partitioning around medoids: greedy start, then exchanges while they help) finds as many medoids as groups;
//! a linear sum assignment then gives every medoid exactly its number of heads at the least sum of distances.
//! Where query heads share key and value heads, these are grouped, and of every one of them the query heads are matched
//! with those of the medoid: what comes out has shared heads again. Ties go to the lower number, so groups are the same
//! on every machine.

use ombra_ir::Diagnostic;
use pathfinding::kuhn_munkres::kuhn_munkres_min;
use pathfinding::matrix::Matrix;

use super::Grouping;
use super::distance::Heads;

/// Steps of a distance of 1 where distances have to be integers.
const STEPS: f64 = (1u64 << 40) as f64;

/// Groups of `factor` heads each, ascending by their first head.
///
/// # Errors
/// `E0593` when heads, or key and value heads and their query heads, do not divide into such groups.
pub fn groups(heads: &Heads, factor: usize, grouping: Grouping) -> Result<Vec<Vec<usize>>, Diagnostic> {
    let shared = heads.sharing.len();
    let each = heads.sharing.first().map_or(1, Vec::len);
    let mut groups = if factor > 0 && shared.is_multiple_of(factor) {
        across(heads, factor, grouping)
    } else if factor > 0 && each.is_multiple_of(factor) {
        within(heads, factor, grouping)
    } else {
        let (what, divides) = if each == 1 {
            (format!("{shared} heads"), format!("that divides {shared}"))
        } else {
            let what = format!("{shared} key and value heads with {each} query heads each");
            (what, format!("that divides {shared} or {each}"))
        };
        return Err(Diagnostic::input("E0593", format!("{what} cannot be merged by a factor of {factor}"))
            .note(format!("expected a factor {divides}")));
    };
    groups.iter_mut().for_each(|g| g.sort_unstable());
    groups.sort();
    Ok(groups)
}

/// Groups that take one query head from each of `factor` key and value heads.
fn across(heads: &Heads, factor: usize, grouping: Grouping) -> Vec<Vec<usize>> {
    let classes = &heads.sharing;
    let distance = |i: usize, j: usize| at(&heads.distance, i, j);
    let matched = |a: &[usize], b: &[usize]| assign(a.len(), |i, j| distance(item(a, i), item(b, j)));
    let class = |c: usize| classes.get(c).map_or(&[][..], Vec::as_slice);
    let between = |a: usize, b: usize| {
        let pairs = matched(class(a), class(b));
        let apart = |(i, &j): (usize, &usize)| distance(item(class(a), i), item(class(b), j));
        pairs.iter().enumerate().map(apart).sum::<f64>() / pairs.len().max(1) as f64
    };
    let table: Vec<Vec<f64>> =
        (0..classes.len()).map(|a| (0..classes.len()).map(|b| between(a, b)).collect()).collect();
    let shared_groups = match grouping {
        Grouping::Adjacent => adjacent(classes.len(), factor),
        Grouping::Similar => similar(&table, factor),
    };
    let mut groups = Vec::new();
    for members in shared_groups {
        let centre = class(centre(&table, &members).0);
        let orders: Vec<Vec<usize>> = members
            .iter()
            .map(|&m| match grouping {
                Grouping::Adjacent => (0..centre.len()).collect(),
                Grouping::Similar => matched(centre, class(m)),
            })
            .collect();
        for slot in 0..centre.len() {
            let of = |(m, order): (&usize, &Vec<usize>)| item(class(*m), item(order, slot));
            groups.push(members.iter().zip(&orders).map(of).collect());
        }
    }
    groups
}

/// Groups of query heads that share a key and value head.
fn within(heads: &Heads, factor: usize, grouping: Grouping) -> Vec<Vec<usize>> {
    let mut groups = Vec::new();
    for class in &heads.sharing {
        let local = match grouping {
            Grouping::Adjacent => adjacent(class.len(), factor),
            Grouping::Similar => {
                let row = |&i: &usize| class.iter().map(|&j| at(&heads.distance, i, j)).collect();
                similar(&class.iter().map(row).collect::<Vec<Vec<f64>>>(), factor)
            }
        };
        groups.extend(local.into_iter().map(|g| g.into_iter().map(|i| item(class, i)).collect::<Vec<_>>()));
    }
    groups
}

fn item(list: &[usize], at: usize) -> usize {
    list.get(at).copied().unwrap_or(0)
}

fn at(distance: &[Vec<f64>], i: usize, j: usize) -> f64 {
    distance.get(i).and_then(|row| row.get(j)).copied().unwrap_or(0.0)
}

/// Neighbours.
fn adjacent(n: usize, size: usize) -> Vec<Vec<usize>> {
    (0..n).collect::<Vec<_>>().chunks(size).map(<[usize]>::to_vec).collect()
}

/// Groups of `size` by k-medoids, balanced. Balanced groups get their own best medoids, and are balanced around those
/// again, while that helps.
fn similar(distance: &[Vec<f64>], size: usize) -> Vec<Vec<usize>> {
    let mut groups = around(distance, &medoids(distance, distance.len() / size.max(1)), size);
    loop {
        let best: Vec<(usize, f64)> = groups.iter().map(|g| centre(distance, g)).collect();
        let new = around(distance, &best.iter().map(|b| b.0).collect::<Vec<_>>(), size);
        let cost = |groups: &[Vec<usize>]| groups.iter().map(|g| centre(distance, g).1).sum::<f64>();
        // Costs fall strictly, so no groups come twice.
        if cost(&new) >= cost(&groups) {
            return groups;
        }
        groups = new;
    }
}

/// Groups of `size` around `medoids`, at the least sum of distances to them.
fn around(distance: &[Vec<f64>], medoids: &[usize], size: usize) -> Vec<Vec<usize>> {
    let slots = assign(distance.len(), |i, slot| at(distance, i, item(medoids, slot / size.max(1))));
    let mut groups = vec![Vec::new(); medoids.len()];
    for (i, slot) in slots.into_iter().enumerate() {
        if let Some(group) = groups.get_mut(slot / size.max(1)) {
            group.push(i);
        }
    }
    groups
}

/// The member to which all others are nearest, and the sum of their distances.
fn centre(distance: &[Vec<f64>], group: &[usize]) -> (usize, f64) {
    let sums = group.iter().map(|&c| (c, group.iter().map(|&i| at(distance, i, c)).sum::<f64>()));
    sums.min_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0))).unwrap_or((0, 0.0))
}

/// `k` medoids, ascending: items such that the sum of distances to the nearest is small.
fn medoids(distance: &[Vec<f64>], k: usize) -> Vec<usize> {
    let n = distance.len();
    let cost = |medoids: &[usize]| -> f64 {
        (0..n).map(|i| medoids.iter().map(|&m| at(distance, i, m)).fold(f64::INFINITY, f64::min)).sum()
    };
    let mut chosen: Vec<usize> = Vec::new();
    while chosen.len() < k {
        let with = |c: usize| cost(&[chosen.as_slice(), &[c]].concat());
        let free = (0..n).filter(|c| !chosen.contains(c));
        let Some(best) = free.min_by(|&a, &b| with(a).total_cmp(&with(b)).then(a.cmp(&b))) else { break };
        chosen.push(best);
    }
    loop {
        chosen.sort_unstable();
        let mut best = (cost(&chosen), None);
        for slot in 0..chosen.len() {
            for other in (0..n).filter(|c| !chosen.contains(c)) {
                let mut changed = chosen.clone();
                if let Some(m) = changed.get_mut(slot) {
                    *m = other;
                }
                let new = cost(&changed);
                if new < best.0 {
                    best = (new, Some(changed));
                }
            }
        }
        // Costs fall strictly, so no set of medoids comes twice.
        match best.1 {
            Some(changed) => chosen = changed,
            None => return chosen,
        }
    }
}

/// The assignment of `n` items to `n` places of the least sum of distances.
fn assign(n: usize, distance: impl Fn(usize, usize) -> f64) -> Vec<usize> {
    let weights = Matrix::from_fn(n, n, |(i, j)| libm::round(distance(i, j).clamp(0.0, 1.0) * STEPS) as i64);
    kuhn_munkres_min(&weights).1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Heads at points of a line, at most 1 apart.
    fn line(points: &[f64], sharing: &[&[usize]]) -> Heads {
        let distance = points.iter().map(|a| points.iter().map(|b| (a - b).abs()).collect()).collect();
        let sharing = match sharing {
            [] => (0..points.len()).map(|i| vec![i]).collect(),
            given => given.iter().map(|c| c.to_vec()).collect(),
        };
        Heads { distance, rows: 1, sharing }
    }

    #[test]
    fn like_heads_come_together() {
        let heads = line(&[0.0, 0.5, 0.9, 0.02, 0.52, 0.93], &[]);
        assert_eq!(groups(&heads, 2, Grouping::Similar).unwrap(), [[0, 3], [1, 4], [2, 5]]);
        assert_eq!(groups(&heads, 2, Grouping::Adjacent).unwrap(), [[0, 1], [2, 3], [4, 5]]);
        assert_eq!(groups(&heads, 6, Grouping::Similar).unwrap(), [[0, 1, 2, 3, 4, 5]]);
    }

    #[test]
    fn groups_are_balanced_at_the_least_sum() {
        // Four heads at one place, two far away: one of the four, the nearest to them, has to join those.
        let heads = line(&[0.0, 0.01, 0.02, 0.1, 0.9, 0.91], &[]);
        assert_eq!(groups(&heads, 3, Grouping::Similar).unwrap(), [[0, 1, 2], [3, 4, 5]]);
    }

    /// The least sum of distances to medoids over all balanced groups, by trying all of them.
    fn least(distance: &[Vec<f64>], size: usize) -> f64 {
        fn go(distance: &[Vec<f64>], left: &[usize], size: usize) -> f64 {
            let Some((&first, rest)) = left.split_first() else { return 0.0 };
            let mut best = f64::INFINITY;
            for mask in 0u32..1 << rest.len() {
                if mask.count_ones() as usize + 1 != size {
                    continue;
                }
                let (mut group, mut others) = (vec![first], Vec::new());
                for (bit, &i) in rest.iter().enumerate() {
                    if mask >> bit & 1 == 1 { group.push(i) } else { others.push(i) }
                }
                let around = |&m: &usize| group.iter().map(|&i| distance[i][m]).sum::<f64>();
                let cost = group.iter().map(around).fold(f64::INFINITY, f64::min);
                best = best.min(cost + go(distance, &others, size));
            }
            best
        }
        go(distance, &(0..distance.len()).collect::<Vec<_>>(), size)
    }

    #[test]
    fn groups_are_nearly_the_best_of_all() {
        let mut state = 7u64;
        let mut next = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as f64 / (1u64 << 31) as f64
        };
        for (n, size) in [(6, 2), (6, 3), (8, 2), (8, 4)] {
            let points: Vec<f64> = (0..n).map(|_| next()).collect();
            let heads = line(&points, &[]);
            let found = groups(&heads, size, Grouping::Similar).unwrap();
            assert!(found.iter().all(|g| g.len() == size));
            let around = |g: &Vec<usize>, m: usize| g.iter().map(|&i| heads.distance[i][m]).sum::<f64>();
            let cost: f64 = found.iter().map(|g| g.iter().map(|&m| around(g, m)).fold(f64::INFINITY, f64::min)).sum();
            let best = least(&heads.distance, size);
            assert!(cost >= best - 1e-9 && cost <= 1.5 * best, "{n} by {size}: {cost}, best {best}");
        }
    }

    #[test]
    fn shared_heads_stay_shared() {
        // Key and value heads 0 and 2 are alike, and so are 1 and 3; their query heads stand in other orders.
        let points = [0.0, 0.2, 0.7, 0.9, 0.21, 0.01, 0.91, 0.71];
        let sharing: &[&[usize]] = &[&[0, 1], &[2, 3], &[4, 5], &[6, 7]];
        let heads = line(&points, sharing);
        assert_eq!(groups(&heads, 2, Grouping::Similar).unwrap(), [[0, 5], [1, 4], [2, 7], [3, 6]]);
        assert_eq!(groups(&heads, 2, Grouping::Adjacent).unwrap(), [[0, 2], [1, 3], [4, 6], [5, 7]]);
        let one = line(&[0.0, 0.5, 0.02, 0.52], &[&[0, 1, 2, 3]]);
        assert_eq!(groups(&one, 2, Grouping::Similar).unwrap(), [[0, 2], [1, 3]]);
    }

    #[test]
    fn factors_that_do_not_divide_are_refused() {
        let heads = line(&[0.0; 6], &[]);
        assert_eq!(groups(&heads, 4, Grouping::Similar).unwrap_err().code, "E0593");
        let shared = line(&[0.0; 4], &[&[0, 1], &[2, 3]]);
        assert_eq!(groups(&shared, 4, Grouping::Similar).unwrap_err().code, "E0593");
    }
}
