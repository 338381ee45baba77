//! Advice for people.

use super::recommend::{Advice, ratio};
use crate::inspect::size;
use std::fmt::Write;

impl Advice {
    /// A table of forms, what follows, and which to choose.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let of = |name: &str| self.sizes.get(name).copied().unwrap_or(0);
        let _ = writeln!(
            out,
            "{} in {}: {} layers; a prompt of {} tokens, a further token after {}, answers of {} tokens",
            self.model,
            self.setting,
            self.layers,
            of("prompt"),
            of("cached"),
            of("tokens")
        );
        if let Some(ranges) = &self.assumed {
            let _ = writeln!(out, "ranges are assumed: {ranges}");
        }
        let networks: Vec<&str> =
            self.forms.first().map_or(Vec::new(), |f| f.prefill.seconds.keys().map(String::as_str).collect());
        let what = if self.computing { "messages and computing" } else { "messages alone" };
        let _ = writeln!(out, "seconds are those of {what}; `x` is how many times less than `full`\n");
        let head = |step: &str| {
            let times: String = networks.iter().map(|n| format!(" {n:>10}")).collect();
            format!("{:>10} {:>6} {:>6}{times}", format!("{step} B"), "x", "rounds")
        };
        let _ = writeln!(out, "{:<44} {} | {} | set-up", "form", head("prompt"), head("token"));
        let Some(full) = self.forms.first() else { return out };
        for form in &self.forms {
            let step = |step: Option<&super::StepCost>, full: Option<&super::StepCost>| match step.zip(full) {
                None => String::new(),
                Some((s, f)) => {
                    let times: String = networks
                        .iter()
                        .map(|n| format!(" {:>10.3}", s.seconds.get(*n).copied().unwrap_or(0.0)))
                        .collect();
                    format!(
                        "{:>10} {:>6.2} {:>6}{times}",
                        size(s.bytes),
                        ratio(f.bytes as f64, s.bytes as f64),
                        s.rounds
                    )
                }
            };
            let _ = writeln!(
                out,
                "{:<44} {} | {} | {}",
                form.name,
                step(Some(&form.prefill), Some(&full.prefill)),
                step(form.decode.as_ref(), full.decode.as_ref()),
                size(form.setup_bytes)
            );
        }
        out.push('\n');
        for (name, why) in &self.impossible {
            let _ = writeln!(out, "not possible: {name}: {why}");
        }
        for rule in &self.rules {
            let _ = writeln!(out, "{}: {}", rule.about, rule.says);
        }
        let _ = writeln!(out, "choose: {}", self.recommended);
        if let Some(name) = &self.recommended_with_approximations {
            let _ = writeln!(out, "or, if training makes up for other functions: {name}");
        }
        out
    }
}
