//! The dealer's side of a session, run ahead of time: its messages go to files instead of a link.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ombra_ir::draw::Way;
use ombra_ir::module::OutputKind;
use ombra_ir::schedule::setup_cost;
use ombra_ir::{Diagnostic, Result};

use super::chunks::{Reader, Writer};
use super::{
    SESSION_FILE, SessionFile, ShareFile, SharingFile, StepFile, StepPlan, VERSION, foreign, inputs_digest, key_text,
    make_folder, sharing_name, step_name, unreadable, write_json,
};
use crate::app::folder::PlanFolder;
use crate::app::program;
use crate::app::request::{Advance, MAX_STEPS, Request};
use crate::exec::{Net, TensorSource};
use crate::prg::Key;
use crate::settings;
use crate::settings::cx::Keys;
use crate::settings::weights::Weights;
use crate::transport::{Party, SessionId};

/// What is to be dealt, and where.
pub struct Dealing<'a> {
    /// The plan.
    pub folder: &'a PlanFolder,
    /// Sizes by name: of the prompt, or of one step on given inputs.
    pub sizes: &'a [(String, u64)],
    /// Steps of the session: the prompt, then one for every further token.
    pub steps: u64,
    /// The dealer's term of the weights, as a file.
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

/// Messages that go to a file, or come from one.
enum FileNet<'a, T> {
    To(&'a mut Writer<T>),
    From(&'a mut Reader<T>),
}

impl<T: serde::Serialize> Net for FileNet<'_, T> {
    fn send(&mut self, _: u32, _: u32, _: Party, payload: Vec<u8>) -> Result<()> {
        match self {
            FileNet::To(file) => file.write(&payload),
            FileNet::From(_) => Err(one_way()),
        }
    }

    fn recv(&mut self, _: u32, _: u32, _: Party, len: u64) -> Result<Vec<u8>> {
        match self {
            FileNet::From(file) => file.read(len),
            FileNet::To(_) => Err(one_way()),
        }
    }
}

fn one_way() -> Diagnostic {
    Diagnostic::internal("E0805", "a message goes the wrong way: a dealer waits for nobody")
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
    let dealer = dealer_of(folder)?;
    let (request, advances) = course(dealing)?;
    let (weights, sharing) = read_share(folder, dealing.weights)?;
    let session = seeds.session.to_string();
    let folders = ["client", "server"].map(|party| output.join(party).join(&session));
    folders.iter().try_for_each(|folder| make_folder(folder))?;
    let [client, server] = &folders;
    let keys = Keys::new(&seeds.server, &seeds.client, &Key::random()?);
    let mut run = settings::begin(folder.module(&request, Way::default())?, dealer, keys, weights, threads)?;
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

/// Shares the server's weights with a dealer through files: its term of them, in `output/dealer`, and the key that the server
/// keeps, in `output/server`. The first is the path of the dealer's file, which is a part of the names of both.
///
/// # Errors
/// `E0421`, `E1001` and `E1003` for the weights of the plan folder, `E1054`.
pub fn share_weights(folder: &PlanFolder, output: &Path, key: &Key) -> Result<(PathBuf, Vec<String>)> {
    dealer_of(folder)?;
    let module = &folder.plan.module;
    let own = Arc::new(folder.server_weights()?);
    let sharing = SessionId::random()?.to_string();
    let folders = ["dealer", "server"].map(|party| output.join(party));
    folders.iter().try_for_each(|folder| make_folder(folder))?;
    let [dealer, server] = &folders;
    let path = dealer.join(format!("weights-{sharing}.share"));
    let content = ShareFile { plan: folder.digest.clone(), sharing: sharing.clone() };
    let mut file = Writer::create(&path, content, setup_cost(module).bytes[Party::Server.index()])?;
    let public = Arc::clone(&folder.public_weights) as Arc<dyn TensorSource>;
    let source = Some(Arc::clone(&own) as Arc<dyn TensorSource>);
    Weights::share(module, Party::Server, Some(key), public, source, &mut FileNet::To(&mut file))?;
    own.check_unchanged()?;
    file.finish()?;
    let kept = server.join(sharing_name(&sharing));
    let (plan, weights) = (folder.digest.clone(), own.sha256().to_owned());
    write_json(&kept, &SharingFile { version: VERSION, plan, sharing, weights, key: key_text(key).to_string() })?;
    let names = [&path, &kept].map(|path| path.display().to_string()).to_vec();
    Ok((path, names))
}

/// The dealer's term of the weights, and the name of the sharing.
fn read_share(folder: &PlanFolder, path: &Path) -> Result<(Arc<Weights>, String)> {
    let mut file = Reader::<ShareFile>::open(path)?;
    let ShareFile { plan, sharing } = file.content().clone();
    if plan != folder.digest {
        return Err(foreign(path, "plan", &folder.digest, &plan));
    }
    let public = Arc::clone(&folder.public_weights) as Arc<dyn TensorSource>;
    let net = &mut FileNet::From(&mut file);
    let weights = Weights::share(&folder.plan.module, dealer_of(folder)?, None, public, None, net)?;
    match file.rest() {
        0 => Ok((Arc::new(weights), sharing)),
        rest => Err(unreadable(path, &format!("{rest} bytes more than the weights of the plan have"))),
    }
}

fn dealer_of(folder: &PlanFolder) -> Result<Party> {
    let setting = folder.plan.module.setting;
    setting.protocol().dealer.ok_or_else(|| {
        Diagnostic::input("E0421", format!("nobody deals in the setting {}", setting.name()))
            .note("help      compile for 2pc-dealer")
    })
}
