//! `policy`: the policy documents of a config, for every account; `policy simulate`: what documents decide.

mod simulate;

use super::{ConfigArg, answer, complain};
use crate::access::needs::Feature;
use crate::access::policy::{self, Attach, Document, MOST_ATTACHED, Terms, UNKNOWN_ACCOUNT};
use crate::access::render;
use crate::config::{Config, TableArn};
use anyhow::{Context, bail};
use clap::ValueEnum;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `policy`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Args {
    #[command(flatten)]
    documents: DocumentArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Say whether policy documents allow a request, and which statement decides; calls nobody
    Simulate(simulate::Args),
}

/// What the documents are written for.
#[derive(Debug, clap::Args)]
struct DocumentArgs {
    #[command(flatten)]
    config: Option<ConfigArg>,
    /// Only the documents of this account
    #[arg(long, value_name = "ACCOUNT")]
    side: Option<String>,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// The role, or the user, that the replicator runs as [default: shardwalker, in the state table's account]
    #[arg(long, value_name = "ARN", value_parser = principal)]
    principal: Option<String>,
    /// Let in callers of this organization only
    #[arg(long, value_name = "ID")]
    org_id: Option<String>,
    /// Let in requests through this VPC endpoint only; may be given several times
    #[arg(long, value_name = "ID", conflicts_with = "source_ip")]
    vpce: Vec<String>,
    /// Let in requests from this network only; may be given several times
    #[arg(long, value_name = "CIDR")]
    source_ip: Vec<String>,
    /// The customer key of a member's table, as MEMBER=ARN, or of the state table, as state=ARN; may be given several
    /// times
    #[arg(long, value_name = "MEMBER=ARN", value_parser = key)]
    kms_key: Vec<(String, String)>,
    #[command(flatten)]
    features: FeaturesArg,
    /// Write files into this directory, which is made: each document its own, or the template of each account
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
}

/// What is used beside replication.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct FeaturesArg {
    /// What is used beside replication
    #[arg(long, value_enum, value_delimiter = ',')]
    features: Vec<Optional>,
}

impl FeaturesArg {
    /// The features.
    pub(super) fn of(&self) -> std::collections::BTreeSet<Feature> {
        let feature = |named: &Optional| match named {
            Optional::Backfill => Feature::Backfill,
            Optional::Verify => Feature::Verify,
            Optional::Repair => Feature::Repair,
            Optional::Strip => Feature::Strip,
            Optional::Cutover => Feature::Cutover,
            Optional::CreateStateTable => Feature::CreateStateTable,
        };
        self.features.iter().map(feature).collect()
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Optional {
    /// The initial copy
    Backfill,
    /// Comparing members
    Verify,
    /// Mending what a comparison found
    Repair,
    /// Taking the stamps off after a migration
    Strip,
    /// Moving the writers of a route with a way back; it compares, too: add verify
    Cutover,
    /// Making the state table, by run --create-state-table
    CreateStateTable,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Format {
    /// All documents, where each goes, why, and the command that applies it
    #[default]
    Json,
    /// A template for each account
    Cloudformation,
    /// A file for each account
    Terraform,
}

/// An ARN of a role or a user.
pub(super) fn principal(text: &str) -> Result<String, String> {
    let fields: Vec<&str> = text.splitn(6, ':').collect();
    match fields.as_slice() {
        ["arn", _, "iam", "", account, name]
            if account.len() == 12 && (name.starts_with("role/") || name.starts_with("user/")) =>
        {
            Ok(text.to_owned())
        }
        _ => Err("it must be the ARN of a role or a user, arn:aws:iam::ACCOUNT:role/NAME".to_owned()),
    }
}

fn key(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((member, key)) if key.starts_with("arn:") && key.contains(":kms:") => {
            Ok((member.to_owned(), key.to_owned()))
        }
        _ => Err("it must be MEMBER=arn:aws:kms:REGION:ACCOUNT:key/ID".to_owned()),
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match (&args.command, &args.documents.config) {
        (Some(Command::Simulate(args)), _) => simulate::run(args),
        (None, Some(config)) => match config.load() {
            Ok(config) => args.documents.write(&config),
            Err(code) => Ok(code),
        },
        (None, None) => bail!("give a config, with -c FILE"),
    }
}

impl DocumentArgs {
    fn write(&self, config: &Config) -> anyhow::Result<ExitCode> {
        let terms = Terms {
            principal: self.principal.clone(),
            organization: self.org_id.clone(),
            endpoints: self.vpce.clone(),
            networks: self.source_ip.clone(),
            keys: self.kms_key.iter().cloned().collect::<BTreeMap<_, _>>(),
            features: self.features.of(),
        };
        let mut documents = policy::documents(config, &terms)?;
        let principal = policy::principal(config, &terms);
        self.warn(config, &principal);
        if let Some(side) = &self.side {
            documents.retain(|document| document.account == *side);
            if documents.is_empty() {
                bail!("nothing is needed in account {side}");
            }
        }
        too_many(&documents);
        let accounts = render::by_account(&documents);
        match self.format {
            Format::Json => {
                if let Some(directory) = &self.out {
                    let text = |document: &Document| format!("{:#}\n", document.policy);
                    let files = documents.iter().map(|d| (render::file_name(d, &documents), text(d)));
                    save(directory, files)?;
                }
                answer(&format!("{:#}", render::json(&documents)));
            }
            Format::Cloudformation => {
                let template = |own: &[&Document]| format!("{:#}\n", render::cloudformation(own));
                self.each_account(&accounts, "template.json", template)?;
            }
            Format::Terraform => self.each_account(&accounts, "tf", render::terraform)?,
        }
        Ok(ExitCode::SUCCESS)
    }

    /// One file for each account: into the directory, or a single one to stdout.
    fn each_account(
        &self,
        accounts: &BTreeMap<&str, Vec<&Document>>,
        suffix: &str,
        write: impl Fn(&[&Document]) -> String,
    ) -> anyhow::Result<()> {
        match (&self.out, accounts.values().next()) {
            (Some(directory), _) => {
                let name = |account: &str| format!("{account}.{suffix}");
                save(directory, accounts.iter().map(|(account, own)| (name(account), write(own))))?;
                for account in accounts.keys() {
                    answer(&directory.join(name(account)).display().to_string());
                }
            }
            (None, Some(own)) if accounts.len() == 1 => answer(write(own).trim_end()),
            (None, _) => {
                let names: Vec<&str> = accounts.keys().copied().collect();
                bail!(
                    "a file is for one account, and these are several: give --out DIRECTORY, or --side with one of {}",
                    names.join(", ")
                )
            }
        }
        Ok(())
    }

    /// Says on stderr what the documents cannot.
    fn warn(&self, config: &Config, principal: &str) {
        if principal.contains(UNKNOWN_ACCOUNT) {
            complain(&format!(
                "the config does not say which account the replicator is in, so {UNKNOWN_ACCOUNT} stands for it: \
                 give --principal arn:aws:iam::ACCOUNT:role/NAME"
            ));
        }
        let profiles =
            config.members.iter().map(|member| (format!("member {}", member.name), &member.access));
        let state = std::iter::once(("the state table".to_owned(), &config.state.access));
        for (name, access) in profiles.chain(state) {
            if let Some(profile) = &access.profile {
                complain(&format!(
                    "{name} is reached by the profile {profile}, and the documents let in {principal}: where that \
                     profile is somebody else, run this again with --principal for it, and take {name}'s documents \
                     from there"
                ));
            }
        }
        let named = config.state.table.parse::<TableArn>().ok();
        let foreign = named.filter(|table| {
            config.state.access.assume_role.is_none() && table.account != policy::account_of(principal)
        });
        if foreign.is_some() && self.features.of().contains(&Feature::CreateStateTable) {
            complain(
                "the state table is in another account than the replicator, which can make tables only in its own: \
                 its owners make it, with partition key pk (S) and sort key sk (S)",
            );
        }
    }
}

/// Says on stderr which roles more policies are written for than AWS attaches to one.
fn too_many(documents: &[Document]) {
    let mut of_roles: BTreeMap<&str, usize> = BTreeMap::new();
    for document in documents {
        if let Attach::Role(role) = &document.attach {
            *of_roles.entry(role).or_default() += 1;
        }
    }
    for (role, policies) in of_roles.into_iter().filter(|(_, policies)| *policies > MOST_ATTACHED) {
        complain(&format!(
            "{role} takes {policies} managed policies. AWS attaches ten to a role, and twenty on request: reach members by \
             roles of their accounts (assume_role), or divide the config between replicators"
        ));
    }
}

fn save(directory: &Path, files: impl Iterator<Item = (String, String)>) -> anyhow::Result<()> {
    let shown = directory.display();
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {shown}"))?;
    for (name, text) in files {
        let path = directory.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
