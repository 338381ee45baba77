//! Sums and products of every pair of forms, at every role and rotation.

use super::*;
use crate::settings::rep3::local::linear::{AddSub, Ring, View, add_sub, cut, map, mul};
use crate::settings::rep3::local::matmul::matmul;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Public,
    Shared,
    /// A sharing with a zero component, as of a weight.
    Weight,
    Two,
    Three,
}

/// `x` in a form at every role.
fn given(x: &[u64], form: Form, words: &mut Words) -> [Ring; 3] {
    match form {
        Form::Public => [0, 1, 2].map(|_| Ring::Public(x.to_vec())),
        Form::Shared => share(x, words).map(|s| Ring::Shared(Rc::into_inner(s).unwrap())),
        Form::Weight => {
            let w1 = words.take(x.len());
            let w2: Vec<u64> = x.iter().zip(&w1).map(|(x, w)| x.wrapping_sub(*w)).collect();
            let (w1, w2) = (|| Component::from(w1.clone()), || Component::from(w2.clone()));
            [
                Ring::Shared(Shared { a: Component::Zero, b: w1() }),
                Ring::Shared(Shared { a: w1(), b: w2() }),
                Ring::Shared(Shared { a: w2(), b: Component::Zero }),
            ]
        }
        Form::Two => terms(x, false, words).map(|s| Ring::Two(Rc::into_inner(s).unwrap())),
        Form::Three => terms(x, true, words).map(|s| Ring::Three(Rc::into_inner(s).unwrap())),
    }
}

/// The value of which every role holds a part.
fn value(parts: [Ring; 3], n: usize) -> (Vec<u64>, Form) {
    match parts {
        [Ring::Public(x), Ring::Public(y), Ring::Public(z)] => {
            assert!(x == y && y == z);
            (x, Form::Public)
        }
        [Ring::Shared(x), Ring::Shared(y), Ring::Shared(z)] => (open(&[x, y, z], n, 64), Form::Shared),
        [Ring::Two(x), Ring::Two(y), Ring::Two(z)] => {
            assert!(x.data() == y.data(), "roles 0 and 1 hold one term");
            (added(&[y, z], n), Form::Two)
        }
        [Ring::Three(x), Ring::Three(y), Ring::Three(z)] => (added(&[x, y, z], n), Form::Three),
        _ => panic!("the roles disagree on the form"),
    }
}

fn added(terms: &[Sum], n: usize) -> Vec<u64> {
    let mut sum = vec![0u64; n];
    for term in terms.iter().filter_map(Sum::data) {
        assert_eq!(term.len(), n);
        sum.iter_mut().zip(term).for_each(|(s, t)| *s = s.wrapping_add(*t));
    }
    sum
}

const FORMS: [Form; 5] = [Form::Public, Form::Shared, Form::Weight, Form::Two, Form::Three];

fn weaker(x: Form, y: Form) -> Form {
    let order = [Form::Public, Form::Shared, Form::Two, Form::Three];
    let rank = |f: Form| order.iter().position(|o| *o == if f == Form::Weight { Form::Shared } else { f }).unwrap();
    order[rank(x).max(rank(y))]
}

#[test]
fn sums_and_differences_of_all_forms() {
    let (xs, ys, out): (&[usize], &[usize], &[usize]) = (&[2, 3], &[3], &[2, 3]);
    for x_form in FORMS {
        for y_form in FORMS {
            let mut words = Words(11);
            let (x, y) = (words.take(6), words.take(3));
            let (a, b) = (given(&x, x_form, &mut words), given(&y, y_form, &mut words));
            for (kind, f) in [(AddSub::Add, u64::wrapping_add as fn(u64, u64) -> u64), (AddSub::Sub, u64::wrapping_sub)]
            {
                let sum = |role: usize| {
                    let (a, b) = (View { value: &a[role], shape: xs }, View { value: &b[role], shape: ys });
                    add_sub(role as u8, kind, a, b, out).unwrap()
                };
                let (found, form) = value([0, 1, 2].map(sum), 6);
                let expected: Vec<u64> = (0..6).map(|i| f(x[i], y[i % 3])).collect();
                assert_eq!(found, expected, "{x_form:?} {y_form:?}");
                assert_eq!(form, weaker(x_form, y_form));
                let swapped = |role: usize| {
                    let (a, b) = (View { value: &a[role], shape: xs }, View { value: &b[role], shape: ys });
                    add_sub(role as u8, kind, b, a, out).unwrap()
                };
                let expected: Vec<u64> = (0..6).map(|i| f(y[i % 3], x[i])).collect();
                assert_eq!(value([0, 1, 2].map(swapped), 6).0, expected, "{y_form:?} {x_form:?}");
            }
        }
    }
}

#[test]
fn products_of_elements() {
    for x_form in FORMS {
        for y_form in FORMS {
            let mut words = Words(12);
            let (x, y) = (words.take(6), words.take(2));
            let (a, b) = (given(&x, x_form, &mut words), given(&y, y_form, &mut words));
            let product = |role: usize| {
                let (a, b) = (View { value: &a[role], shape: &[2, 3] }, View { value: &b[role], shape: &[2, 1] });
                mul(a, b, &[2, 3])
            };
            let secrets = |f: Form| matches!(f, Form::Two | Form::Three);
            if secrets(x_form) && y_form != Form::Public || secrets(y_form) && x_form != Form::Public {
                assert_eq!(product(0).err().map(|e| e.code), Some("E0804"));
                continue;
            }
            let (found, form) = value([0, 1, 2].map(|role| product(role).unwrap()), 6);
            let expected: Vec<u64> = (0..6).map(|i| x[i].wrapping_mul(y[i / 3])).collect();
            assert_eq!(found, expected, "{x_form:?} {y_form:?}");
            let both_shared =
                weaker(x_form, y_form) == Form::Shared && x_form != Form::Public && y_form != Form::Public;
            assert_eq!(form, if both_shared { Form::Three } else { weaker(x_form, y_form) });
        }
    }
}

/// `x · y` of the last axes by the definition, for one batch.
fn plain_product(x: &[u64], y: &[u64], (m, k, n): (usize, usize, usize), trans_b: bool) -> Vec<u64> {
    let at = |p: usize, j: usize| if trans_b { y[j * k + p] } else { y[p * n + j] };
    (0..m * n)
        .map(|i| (0..k).fold(0u64, |sum, p| sum.wrapping_add(x[i / n * k + p].wrapping_mul(at(p, i % n)))))
        .collect()
}

#[test]
fn matrix_products_of_all_forms() {
    for (x_form, y_form) in FORMS.iter().flat_map(|x| FORMS.map(|y| (*x, y))) {
        for trans_b in [false, true] {
            let (m, k, n) = (3, 5, 4);
            let mut words = Words(13);
            let (x, y) = (words.take(2 * m * k), words.take(k * n));
            let (a, b) = (given(&x, x_form, &mut words), given(&y, y_form, &mut words));
            let y_shape = if trans_b { [n, k] } else { [k, n] };
            let product = |role: usize| {
                let (a, b) = (View { value: &a[role], shape: &[2, m, k] }, View { value: &b[role], shape: &y_shape });
                matmul(role as u8, a, b, trans_b, 1)
            };
            let sums = |f: Form| matches!(f, Form::Two | Form::Three);
            if sums(y_form) || sums(x_form) && y_form != Form::Public {
                assert_eq!(product(0).err().map(|e| e.code), Some("E0804"), "{x_form:?} {y_form:?}");
                continue;
            }
            let (found, form) = value([0, 1, 2].map(|role| product(role).unwrap()), 2 * m * n);
            let expected: Vec<u64> = x.chunks(m * k).flat_map(|x| plain_product(x, &y, (m, k, n), trans_b)).collect();
            assert_eq!(found, expected, "{x_form:?} {y_form:?} {trans_b}");
            let secret = |f: Form| f != Form::Public;
            let expected = match (secret(x_form), secret(y_form)) {
                (true, true) => Form::Three,
                (false, false) => Form::Public,
                _ if sums(x_form) => x_form,
                _ => Form::Two,
            };
            assert_eq!(form, expected);
        }
    }
}

#[test]
fn batches_of_matrices_broadcast() {
    let (m, k, n) = (2, 3, 2);
    let mut words = Words(14);
    let (x, y) = (words.take(2 * 3 * m * k), words.take(3 * k * n));
    let (a, b) = (given(&x, Form::Shared, &mut words), given(&y, Form::Shared, &mut words));
    let product = |role: usize| {
        let (a, b) = (View { value: &a[role], shape: &[2, 3, m, k] }, View { value: &b[role], shape: &[1, 3, k, n] });
        matmul(role as u8, a, b, false, 2).unwrap()
    };
    let (found, _) = value([0, 1, 2].map(product), 6 * m * n);
    let expected: Vec<u64> = (0..6)
        .flat_map(|i| plain_product(&x[i * m * k..(i + 1) * m * k], &y[i % 3 * k * n..], (m, k, n), false))
        .collect();
    assert_eq!(found, expected);
    let unequal = [View { value: &a[0], shape: &[6, m, k] }, View { value: &b[0], shape: &[3, n, k] }];
    assert!(matmul(0, unequal[0], unequal[1], false, 1).is_err());
}

#[test]
fn linear_maps_keep_zero_components() {
    let parts = given(&[1, 2], Form::Weight, &mut Words(1));
    let mapped = map(&parts[0], |words| Ok(words.to_vec())).unwrap();
    assert!(matches!(mapped, Ring::Shared(Shared { a: Component::Zero, b: Component::Data(_) })));
}

/// Every sharing of every value of a ring of 16 bits cut by 8 gives the floor less 0, 1 or 2, and each of them occurs;
/// in larger rings, whatever lies above the ring, and with a component of zero the floor or one less.
#[test]
fn cuts_are_the_floor_less_what_the_shares_decide() {
    let mut words = Words(15);
    let mut seen = [0u32; 3];
    let all: Vec<u64> = (0..1 << 16).collect();
    for (bits, by) in [(16u8, 8u8), (64, 16), (48, 40), (24, 8)] {
        for form in [Form::Shared, Form::Weight] {
            let x: Vec<u64> =
                all.iter().map(|x| x.wrapping_mul(if bits == 16 { 1 } else { 0x9e37_79b9_7f4a_7c15 })).collect();
            let parts = given(&x, form, &mut words).map(|part| cut(&part, bits, by).unwrap());
            let (found, _) = value(parts, x.len());
            let left = bits - by;
            for (x, y) in x.iter().zip(found) {
                let less = ((signed(*x, bits) >> by) as u64).wrapping_sub(y) & ring_mask(left);
                assert!(less <= if form == Form::Weight { 1 } else { 2 }, "{x} cut by {by}: {less} too low");
                seen[less as usize] += 1;
            }
        }
    }
    assert!(seen.iter().all(|n| *n > 10_000), "{seen:?}");
    let sums = given(&[1], Form::Three, &mut words);
    assert_eq!(cut(&sums[0], 64, 8).err().map(|e| e.code), Some("E0804"));
}
