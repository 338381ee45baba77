//! Which technique a protocol asks for: appendix F of Rathee et al. (arXiv 2408.03561), decided by predictions.
//!
//! The paper's rule: a protocol that is bound by arithmetic takes adapters; one that is bound by the rest takes merged
//! heads where prompts are long and adapters where they are short, since a prompt's attention grows with its square and
//! further tokens multiply vectors by matrices; where nothing stands out, layers are frozen; and freezing comes on top of
//! the other two. Arithmetic are products, of values with weights and with each other: what they send, and, where a machine
//! is known, their multiplications. Truncations belong to the rest, as they do there.

use super::recommend::{answer_seconds, ratio};
use super::{Prediction, Request, StepCost};

/// From this share of an answer's time on, a part is what a protocol is bound by.
const BOUND: f64 = 0.6;

/// What a protocol is bound by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bottleneck {
    /// Products.
    Arithmetic,
    /// All but products, in a prompt.
    RestOfPrompts,
    /// All but products, in further tokens.
    RestOfTokens,
    /// Nothing stands out.
    None,
}

/// Shares of an answer's time on the deciding network.
#[derive(Clone, Copy, Debug)]
pub struct Shares {
    /// Of products.
    pub arithmetic: f64,
    /// Of the prompt.
    pub prompt: f64,
}

/// The shares of an answer of `form`.
pub fn shares(form: &Prediction, request: &Request) -> Shares {
    let Some((network, _)) = request.networks.first() else { return Shares { arithmetic: 0.0, prompt: 1.0 } };
    let seconds = |step: &StepCost| step.seconds.get(network).copied().unwrap_or(0.0);
    let arithmetic = |step: &StepCost| {
        let messages = (seconds(step) - step.computing_seconds).max(0.0);
        messages * step.product_bytes as f64 / step.bytes.max(1) as f64 + step.product_seconds
    };
    let times = request.tokens as f64;
    let all = answer_seconds(form, request);
    let tokens = form.decode.as_ref().map_or(0.0, arithmetic) * times;
    Shares { arithmetic: ratio(arithmetic(&form.prefill) + tokens, all), prompt: ratio(seconds(&form.prefill), all) }
}

/// What shares say of a protocol.
pub fn bottleneck(shares: Shares) -> Bottleneck {
    match shares {
        Shares { arithmetic, .. } if arithmetic >= BOUND => Bottleneck::Arithmetic,
        Shares { arithmetic, .. } if 1.0 - arithmetic < BOUND => Bottleneck::None,
        Shares { prompt, .. } if prompt >= 0.5 => Bottleneck::RestOfPrompts,
        _ => Bottleneck::RestOfTokens,
    }
}

/// The paper's choice for the protocol of `forms`, of which the first is the model with all its weights private, with what it
/// gains, and whether another technique gains more.
pub fn statement(forms: &[Prediction], request: &Request) -> Option<String> {
    let full = forms.first()?;
    let gain = |form: &Prediction| ratio(answer_seconds(full, request), answer_seconds(form, request));
    let best = |wanted: &dyn Fn(&Prediction) -> bool| -> Option<&Prediction> {
        forms.iter().filter(|f| !f.approximates && wanted(f)).max_by(|a, b| gain(a).total_cmp(&gain(b)))
    };
    let adapters = best(&|f| f.techniques == 1 && f.name.starts_with("LoRA"))?;
    let merged = best(&|f| f.techniques == 1 && f.name.ends_with("heads merged"));
    let frozen = best(&|f| f.techniques == 1 && f.name.starts_with("last "));
    let found = shares(full, request);
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    let (why, chosen) = match bottleneck(found) {
        Bottleneck::Arithmetic => {
            (format!("products take {} of an answer's time", percent(found.arithmetic)), Some(adapters))
        }
        Bottleneck::RestOfPrompts => (
            format!(
                "products take {} of an answer's time, and the prompt {}",
                percent(found.arithmetic),
                percent(found.prompt)
            ),
            merged,
        ),
        Bottleneck::RestOfTokens => (
            format!(
                "products take {} of an answer's time, and further tokens {}",
                percent(found.arithmetic),
                percent(1.0 - found.prompt)
            ),
            Some(adapters),
        ),
        Bottleneck::None => {
            (format!("products take {} of an answer's time: no single bottleneck", percent(found.arithmetic)), frozen)
        }
    };
    let chosen = chosen?;
    let mut says = format!("{why}; the paper's choice is {}, {:.2} times faster", chosen.name, gain(chosen));
    let other = [Some(adapters), merged, frozen].into_iter().flatten().max_by(|a, b| gain(a).total_cmp(&gain(b)))?;
    if gain(other) > gain(chosen) {
        says += &format!("; {} is {:.2} times faster here", other.name, gain(other));
    }
    let on_top = best(&|f| f.techniques == 2 && f.name.starts_with("last ") && f.name.ends_with(&chosen.name));
    if let Some(both) = on_top.filter(|_| !chosen.name.starts_with("last ")) {
        says += &format!("; with layers frozen on top, {}, {:.2} times", both.name, gain(both));
    }
    Some(says)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_decide_as_the_paper_does() {
        let of = |arithmetic, prompt| bottleneck(Shares { arithmetic, prompt });
        assert_eq!(of(0.95, 0.9), Bottleneck::Arithmetic);
        assert_eq!(of(0.12, 0.9), Bottleneck::RestOfPrompts);
        assert_eq!(of(0.12, 0.2), Bottleneck::RestOfTokens);
        assert_eq!(of(0.5, 0.2), Bottleneck::None);
    }
}
