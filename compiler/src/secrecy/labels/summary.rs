//! What labels say, for people: parameters by layer, how much of the base was found, layers that are mixed.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Label, Labels, Owner, Reason};

/// A private part of this fraction of a layer's parameters at most is what adapters are.
const ADAPTERS: f64 = 0.1;

/// Parameters of a layer by owner.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Parameters {
    public: usize,
    private: usize,
    /// Whether content made something public.
    by_content: bool,
}

impl Labels {
    /// Parameters public and private by layer, how much of the base was found, and what may not be meant: lines of text.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        let mut layers: BTreeMap<Option<u32>, Parameters> = BTreeMap::new();
        for label in self.tensors.iter().filter(|l| l.reason != Reason::Structure) {
            // What several layers share counts once, in the first.
            let of = layers.entry(label.layers.first().copied()).or_default();
            let sum = if label.owner == Owner::Public { &mut of.public } else { &mut of.private };
            *sum += label.elements();
            of.by_content |= label.owner == Owner::Public && label.reason == Reason::Content;
        }
        let mut groups: Vec<(Vec<u32>, Parameters)> = Vec::new();
        for (layer, of) in layers.iter().filter_map(|(layer, of)| Some(((*layer)?, of))) {
            match groups.last_mut() {
                Some((group, last)) if last == of => group.push(layer),
                _ => groups.push((vec![layer], *of)),
            }
        }
        let mut line = |name: String, of: &Parameters, each: &str| {
            let _ = writeln!(
                text,
                "{:<24} {:>15} public {:>15} private{each}",
                name,
                thousands(of.public),
                thousands(of.private)
            );
        };
        if let Some(outside) = layers.get(&None) {
            line("parameters outside layers".into(), outside, "");
        }
        for (group, of) in &groups {
            match group.as_slice() {
                [one] => line(format!("layer {one}"), of, ""),
                many => line(format!("layers {}", ranges(many)), of, " each"),
            }
        }
        text + &self.of_base() + &mixed(&groups) + &self.kept_structure()
    }

    /// How much of the base was found.
    fn of_base(&self) -> String {
        if !self.compared {
            return String::new();
        }
        let weights = || self.tensors.iter().filter(|l| l.elements() > 1 && l.reason != Reason::Structure);
        let count = |labels: &mut dyn Iterator<Item = &Label>| {
            labels.fold((0, 0), |(tensors, parameters), l| (tensors + 1, parameters + l.elements()))
        };
        let (all, all_parameters) = count(&mut weights());
        let (known, known_parameters) = count(&mut weights().filter(|l| l.reason == Reason::Content));
        let (near, near_parameters) = count(&mut weights().filter(|l| l.reason == Reason::Digits));
        let percent = 100.0 * known_parameters as f64 / all_parameters.max(1) as f64;
        let mut text = format!(
            "in the base: {known} of {all} tensors, {} of {} parameters ({percent:.1} %)\n",
            thousands(known_parameters),
            thousands(all_parameters)
        );
        if near > 0 {
            let _ = writeln!(
                text,
                "note: {near} tensors with {} parameters would be in the base if they were rounded to its element type; \
                 their further digits are in no public file, so they stay private. Give a base of the model's own \
                 element type",
                thousands(near_parameters)
            );
        } else if known == 0 && all > 0 {
            text += "warning: nothing of the base was found in the model: is it the base of this model?\n";
        }
        text
    }

    /// Numbers and tables in layers that patterns make private, which stay public.
    fn kept_structure(&self) -> String {
        let named = |l: &&Label| l.owner == Owner::Private && l.reason == Reason::Name;
        let layers: Vec<u32> = self.tensors.iter().filter(named).flat_map(|l| l.layers.iter().copied()).collect();
        let kept = |l: &&Label| {
            l.reason == Reason::Structure && l.elements() > 1 && l.layers.iter().any(|n| layers.contains(n))
        };
        let names: Vec<&str> = self.tensors.iter().filter(kept).map(|l| l.name.as_str()).collect();
        match names.as_slice() {
            [] => String::new(),
            [first, ..] => format!(
                "note: {} tables of angles or masks in private layers stay public, such as `{first}`\n",
                names.len()
            ),
        }
    }
}

/// Says which layers are private in part, by content.
fn mixed(groups: &[(Vec<u32>, Parameters)]) -> String {
    let mixed = groups.iter().filter(|(_, of)| of.by_content && of.private > 0);
    let (adapted, other): (Vec<_>, Vec<_>) =
        mixed.partition(|(_, of)| of.private as f64 <= ADAPTERS * (of.public + of.private) as f64);
    let list =
        |groups: &[&(Vec<u32>, Parameters)]| ranges(&groups.iter().flat_map(|g| g.0.clone()).collect::<Vec<_>>());
    let mut text = String::new();
    if !adapted.is_empty() {
        let _ = writeln!(
            text,
            "note: in layers {} few parameters are private, as adapters are: products with the public ones need no \
             messages, the rest of these layers does",
            list(&adapted)
        );
    }
    if !other.is_empty() {
        let _ = writeln!(
            text,
            "warning: layers {} are public in part and private in part: they run under MPC from their first private \
             weight on. If they were meant to be frozen, the base differs from what they were tuned from",
            list(&other)
        );
    }
    text
}

/// Numbers in order, neighbours as ranges.
pub(super) fn ranges(numbers: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for &n in numbers {
        match parts.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(n) => *last = n,
            _ => parts.push((n, n)),
        }
    }
    let parts = parts.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
    parts.collect::<Vec<_>>().join(", ")
}

/// A number with its digits in groups of three.
fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|g| std::str::from_utf8(g).ok()).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(name: &str, layer: Option<u32>, elements: usize, owner: Owner, reason: Reason) -> Label {
        let (layers, shape) = (layer.into_iter().collect(), vec![elements]);
        Label { name: name.into(), shape, owner, reason, layers, ..Label::default() }
    }

    #[test]
    fn parameters_stand_by_layer_and_equal_layers_together() {
        let tensors = vec![
            label("a", Some(0), 1000, Owner::Public, Reason::Content),
            label("b", Some(1), 1000, Owner::Public, Reason::Content),
            label("c", Some(2), 900, Owner::Public, Reason::Content),
            label("d", Some(2), 100, Owner::Private, Reason::Nothing),
            label("e", None, 1234567, Owner::Private, Reason::Digits),
            label("one", Some(2), 1, Owner::Public, Reason::Structure),
        ];
        let text = Labels { tensors, compared: true, guessed: 0 }.summary();
        for line in [
            "parameters outside layers               0 public       1,234,567 private\n",
            "layers 0-1                         1,000 public               0 private each\n",
            "layer 2                              900 public             100 private\n",
            "in the base: 3 of 5 tensors, 2,900 of 1,237,567 parameters (0.2 %)\n",
            "note: 1 tensors with 1,234,567 parameters would be in the base if they were rounded",
            "note: in layers 2 few parameters are private, as adapters are",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(!text.contains("warning"), "{text}");
    }

    #[test]
    fn a_mixed_layer_and_a_base_of_another_model_are_warned_about() {
        let mixed = vec![
            label("a", Some(0), 1000, Owner::Public, Reason::Content),
            label("b", Some(0), 1000, Owner::Private, Reason::Nothing),
        ];
        let text = Labels { tensors: mixed, compared: true, guessed: 0 }.summary();
        assert!(text.contains("warning: layers 0 are public in part"), "{text}");
        let other = vec![label("a", Some(0), 1000, Owner::Private, Reason::Nothing)];
        let text = Labels { tensors: other, compared: true, guessed: 0 }.summary();
        assert!(text.contains("warning: nothing of the base was found"), "{text}");
    }
}
