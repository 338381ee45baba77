//! The dealer's side of a session, run ahead of time: its messages go to files instead of a link.

use std::path::Path;

use ombra_ir::draw::Way;
use ombra_ir::module::OutputKind;
use ombra_ir::{Diagnostic, Result};

use super::chunks::Writer;
use super::shares::{FileNet, weights_of_dealer};
use super::{
    SESSION_FILE, SessionFile, StepFile, StepPlan, VERSION, inputs_digest, key_text, make_folder, step_name, write_json,
};
use crate::app::folder::PlanFolder;
use crate::app::program;
use crate::app::request::{Advance, MAX_STEPS, Request};
use crate::backend::products::Products;
use crate::prg::Key;
use crate::settings;
use crate::settings::cx::Keys;
use crate::transport::{Party, SessionId};

/// What is to be dealt, and where.
pub struct Dealing<'a> {
    /// The plan.
    pub folder: &'a PlanFolder,
    /// Sizes by name: of the prompt, or of one step on given inputs.
    pub sizes: &'a [(String, u64)],
    /// Steps of the session: the prompt, then one for every further token.
    pub steps: u64,
    /// The dealer's term of the weights, as a file, or for a strict dealer that of its key.
    pub weights: &'a Path,
    /// Where the session is written.
    pub output: &'a Path,
    /// Threads of a product.
    pub threads: usize,
    /// Most bytes that a step may take.
    pub memory: u64,
}

/// What nobody but the dealer chooses: from equal ones equal files are made.
pub struct Seeds {
    /// The id of the session.
    pub session: SessionId,
    /// The key of client and dealer.
    pub client: Key,
    /// The key of server and dealer.
    pub server: Key,
}

impl Seeds {
    /// Fresh ones.
    ///
    /// # Errors
    /// `E0714`, `E0907`.
    pub fn random() -> Result<Seeds> {
        Ok(Seeds { session: SessionId::random()?, client: Key::random()?, server: Key::random()? })
    }
}

/// The request and the steps that sizes stand for.
fn course(dealing: &Dealing<'_>) -> Result<(Request, Vec<Advance>)> {
    let Dealing { folder, sizes, steps, .. } = dealing;
    let plan = &folder.plan;
    let wrong = |what: String, expected: &str| Diagnostic::input("E1007", what).note(format!("expected  {expected}"));
    if !(1..=MAX_STEPS).contains(steps) {
        return Err(wrong(format!("{steps} steps cannot be dealt"), &format!("1 to {MAX_STEPS}")));
    }
    if !plan.module.outputs.iter().any(|output| output.kind == OutputKind::NextToken) {
        if *steps > 1 {
            return Err(wrong("a plan without next tokens has sessions of one step".to_owned(), "--steps 1"));
        }
        let request = Request::Infer { sizes: sizes.to_vec(), public: Vec::new(), states: false };
        request.check(plan)?;
        return Ok((request, vec![Advance::default()]));
    }
    let of = |size: &Option<String>| sizes.iter().find(|(name, _)| Some(name) == size.as_ref()).map(|(_, size)| *size);
    let known = [&plan.seq, &plan.batch];
    if let Some((name, _)) = sizes.iter().find(|(name, _)| known.iter().all(|size| size.as_ref() != Some(name))) {
        let names: Vec<_> = known.into_iter().flatten().map(|name| format!("--dim {name}=N")).collect();
        return Err(wrong(format!("the size `{}` cannot be given", name.escape_debug()), &names.join(" or ")));
    }
    let Some(length) = of(&plan.seq).filter(|length| *length > 0) else {
        let name = plan.seq.as_deref().unwrap_or("seq").to_owned();
        return Err(wrong("the length of the prompt is missing".to_owned(), &format!("--dim {name}=N")));
    };
    let batch = of(&plan.batch).unwrap_or(1);
    let positions = length.saturating_add(steps - 1);
    let texts = usize::try_from(batch).ok().filter(|texts| *texts <= MAX_STEPS as usize);
    let texts = texts.ok_or_else(|| wrong(format!("{batch} texts side by side"), &format!("at most {MAX_STEPS}")))?;
    let request = Request::Generate { padding: vec![0; texts], positions, ways: vec![Way::default()] };
    request.check(plan)?;
    let further = (0..steps - 1).map(|done| Advance { keep: length + done, new: 1, ..Advance::default() });
    let first = Advance { keep: 0, new: length, ..Advance::default() };
    Ok((request, [first].into_iter().chain(further).collect()))
}

/// Deals a session: one file for every step, and what client and server get beside. The names of what was written.
///
/// # Errors
/// `E0421` for a setting without a dealer, `E1007` for sizes or steps that the plan does not take, `E1050` and `E1051` for
/// the file of weights, `E1054`.
pub fn deal(dealing: &Dealing<'_>, seeds: &Seeds) -> Result<Vec<String>> {
    let Dealing { folder, output, threads, memory, .. } = *dealing;
    let plan = &folder.plan;
    let dealer = plan.module.setting.dealer()?;
    let (request, advances) = course(dealing)?;
    let (weights, sharing) = weights_of_dealer(folder, dealing.weights)?;
    let session = seeds.session.to_string();
    let folders = ["client", "server"].map(|party| output.join(party).join(&session));
    folders.iter().try_for_each(|folder| make_folder(folder))?;
    let [client, server] = &folders;
    let keys = Keys::new(&seeds.server, &seeds.client, &Key::random()?);
    let mut run =
        settings::begin(folder.module(&request, Way::default())?, dealer, keys, weights, Products::cpu(threads))?;
    let mut names = Vec::new();
    let mut steps = Vec::with_capacity(advances.len());
    for (index, advance) in advances.into_iter().enumerate() {
        let module = folder.module(&request, advance.choice.way())?;
        let inputs = request.step(plan, advance, memory)?;
        let step = program::prepare(&module, &inputs.sizes, &inputs.public, memory)?;
        let content = StepFile {
            plan: folder.digest.clone(),
            session: session.clone(),
            step: u32::try_from(index).unwrap_or(u32::MAX),
            sizes: inputs.sizes.clone(),
        };
        let path = server.join(step_name(index));
        let bytes = plan.module.setting.apart(step.cost.bytes).dealt;
        let mut file = Writer::create(&path, content, bytes)?;
        run.set_module(module);
        run.step(&step.bound, &step.schedule, &[], &mut FileNet::To(&mut file))?;
        let file = Some(file.finish()?);
        names.push(path.display().to_string());
        steps.push(StepPlan {
            inputs: inputs_digest(&request, &inputs, advance.choice.way())?,
            sizes: inputs.sizes,
            file,
        });
    }
    for (folder_of, party, key) in [(server, Party::Server, &seeds.server), (client, Party::Client, &seeds.client)] {
        let steps =
            steps.iter().cloned().map(|step| StepPlan { file: step.file.filter(|_| party == Party::Server), ..step });
        let file = SessionFile {
            version: VERSION,
            party,
            plan: folder.digest.clone(),
            session: session.clone(),
            sharing: sharing.clone(),
            key: key_text(key).to_string(),
            steps: steps.collect(),
        };
        // Written last: without it, nothing that was cut off is a session.
        let path = folder_of.join(SESSION_FILE);
        write_json(&path, &file)?;
        names.push(path.display().to_string());
    }
    Ok(names)
}
