//! What every command of the client begins with: a plan folder, how its files are kept apart, what it says of texts, and
//! the other parties.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use ombra_ir::draw::Way;
use ombra_ir::folder::TOKENIZER;
use ombra_ir::{Diagnostic, Result};

use super::folder::PlanFolder;
use super::isolation::{Isolation, Program};
use super::local::LocalParties;
use super::material::{ClientMaterial, Spent, part_of};
use super::settings::Settings;
use super::talk;
use super::text::Text;
use crate::backend::products::{Choice, Products};
use crate::config::PartyConfig;
use crate::transport::{Endpoint, Network, Party};

/// A plan, whom it is run with, and how.
#[derive(Clone, Debug)]
pub struct Access {
    /// The plan folder.
    pub folder: PathBuf,
    /// The other parties.
    pub peers: Peers,
    /// Inputs that the plan may make public though they are no masks or positions.
    pub allow_public: Vec<String>,
    /// Threads of every party on this machine.
    pub threads: usize,
    /// Where every party on this machine makes products.
    pub backend: Choice,
    /// The emulated network, as text.
    pub network: String,
    /// What is started for parties on this machine, and for what is kept apart.
    pub program: Program,
    /// Whether libraries work on files of the plan folder in a process of their own. A plan that others made needs that.
    pub isolated: bool,
    /// What a dealer made ahead of time, who need not be there then.
    pub material: Option<MaterialPaths>,
}

/// Where material is, and the lists of what was used of it.
#[derive(Clone, Debug)]
pub struct MaterialPaths {
    /// The folder of the sessions of one party, or that in which every party has one of its own.
    pub folder: PathBuf,
    /// The client's list.
    pub spent: PathBuf,
    /// The server's list, where it runs on this machine.
    pub spent_of_server: PathBuf,
}

impl MaterialPaths {
    /// The material in `folder` with lists beside it, for parties that all run on this machine.
    pub fn local(folder: &Path) -> MaterialPaths {
        // One folder has one list, however it is named.
        let folder = &folder.canonicalize().unwrap_or_else(|_| folder.components().collect());
        let mut lists = folder.as_os_str().to_owned();
        lists.push("-spent");
        let lists = PathBuf::from(lists);
        let [spent, spent_of_server] = ["client", "server"].map(|party| lists.join(party));
        MaterialPaths { folder: folder.to_path_buf(), spent, spent_of_server }
    }

    /// The client's part.
    pub fn of_client(&self) -> ClientMaterial {
        ClientMaterial::at(&part_of(&self.folder, Party::Client), Spent::at(&self.spent))
    }
}

/// Where the server and the helper of a client's run are.
#[derive(Clone, Debug)]
pub enum Peers {
    /// Processes that this one starts.
    Local,
    /// As the client's configuration says.
    Configured(PathBuf),
}

/// A plan folder that was opened, before any party is connected to.
pub struct Opened {
    /// How it was to be opened.
    pub access: Access,
    /// The plan folder.
    pub folder: PlanFolder,
    /// How libraries are kept apart, where they are.
    pub isolation: Option<Isolation>,
    /// How this party makes products.
    pub products: Products,
    /// The emulated network.
    pub network: Option<Network>,
    config: Option<PartyConfig>,
}

/// The client's way to the other parties. Those of this machine end when it is dropped.
pub struct Connection {
    /// Where sessions are opened.
    pub endpoint: Endpoint,
    _local: Option<LocalParties>,
}

/// What the files of a plan folder say of texts.
pub struct Model {
    /// End tokens and the template for chats.
    pub settings: Settings,
    /// The tokenizer, where it was wanted.
    pub text: Option<Text>,
    /// Tokens that end a text.
    pub end_tokens: BTreeSet<i64>,
}

impl Access {
    /// Opens the plan folder and reads the client's configuration, where there is one.
    ///
    /// # Errors
    /// Those of [`Network::parse`], [`PlanFolder::open`], [`PartyConfig::read`] and [`Products::choose`].
    pub fn open(&self) -> Result<Opened> {
        let network = Network::parse(&self.network)?;
        let folder = PlanFolder::open(&self.folder)?;
        let config = match &self.peers {
            Peers::Local => None,
            Peers::Configured(path) => Some(PartyConfig::read(path)?),
        };
        let limits = config.as_ref().map(|config| config.limits).unwrap_or_default();
        let program = self.program.clone();
        let isolation = Isolation { program, memory: limits.max_memory_bytes, time: limits.receive };
        let isolation = self.isolated.then_some(isolation);
        let products = Products::choose(self.backend, self.threads, &folder.plan.module)?;
        Ok(Opened { access: self.clone(), folder, isolation, products, network, config })
    }
}

impl Opened {
    /// What the folder says of texts; the tokenizer only where `with_text` asks for it. `stop_tokens` end a text too.
    ///
    /// # Errors
    /// Those of [`Settings::read`], [`Settings::end_tokens`] and [`Text::open`].
    pub fn model(&self, with_text: bool, stop_tokens: &[i64]) -> Result<Model> {
        let settings = Settings::read(&self.folder)?;
        let text = with_text.then(|| Text::open(&self.folder, self.isolation.as_ref())).transpose()?;
        let mut end_tokens = settings.end_tokens(text.as_ref())?;
        end_tokens.extend(stop_tokens);
        Ok(Model { settings, text, end_tokens })
    }

    /// Whether the folder has a tokenizer.
    ///
    /// # Errors
    /// `E1004` for a name that leaves the folder.
    pub fn has_text(&self) -> Result<bool> {
        Ok(self.folder.file(TOKENIZER)?.is_some())
    }

    /// The client's way to the other parties: over its configuration, or to processes that are started for it.
    ///
    /// # Errors
    /// `E0711`, `E0712`, and those of [`LocalParties::start`].
    pub fn connect(&self) -> Result<Connection> {
        let Access { folder, network, threads, backend, program, material, .. } = &self.access;
        let setting = self.folder.plan.module.setting;
        let (config, local) = match &self.config {
            None => {
                let beside = setting.beside();
                let local =
                    LocalParties::start(program, folder, beside, material.as_ref(), network, (*threads, *backend))?;
                (local.client.clone(), Some(local))
            }
            Some(config) => (config.clone(), None),
        };
        if config.party != Party::Client {
            return Err(Diagnostic::input("E0711", format!("the configuration is that of the {}", config.party))
                .note("expected  party = \"client\""));
        }
        config.check_setting(setting)?;
        let endpoint = Endpoint::new(&config, &self.folder.digest, self.network)?;
        if let Some(local) = &local {
            local.remove_keys();
        }
        Ok(Connection { endpoint, _local: local })
    }

    /// How texts are continued over sessions that choose next tokens in these `ways`.
    pub fn talk_options(&self, ways: Vec<Way>) -> talk::Options<'_> {
        let (products, allow_public) = (self.products.clone(), &self.access.allow_public);
        talk::Options { products, isolation: self.isolation.as_ref(), allow_public, ways }
    }
}

impl Model {
    /// The tokenizer.
    ///
    /// # Errors
    /// `E1009` where there is none.
    pub fn text(&self) -> Result<&Text> {
        self.text.as_ref().ok_or_else(no_text)
    }
}

/// The error of a plan without a tokenizer.
pub(super) fn no_text() -> Diagnostic {
    Diagnostic::input("E1009", "the plan has no tokenizer.json")
        .note("help      give tokens, or compile with a tokenizer")
}
