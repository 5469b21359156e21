//! `policy`: the policy documents of a config, for every account; `policy simulate`: what documents decide.

mod simulate;

use super::{ConfigArg, answer, complain};
use crate::access::needs::Feature;
use crate::access::policy::{self, Document, Terms, UNKNOWN_ACCOUNT};
use crate::access::render;
use crate::config::Config;
use anyhow::{Context, bail};
use clap::ValueEnum;
use std::collections::BTreeMap;
use std::path::PathBuf;
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
    /// The role that the replicator runs as [default: shardwalker, in the state table's account]
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
    /// The customer key of a member's table, as MEMBER=ARN; may be given several times
    #[arg(long, value_name = "MEMBER=ARN", value_parser = key)]
    kms_key: Vec<(String, String)>,
    #[command(flatten)]
    features: FeaturesArg,
    /// Also write each document to a file of its own in this directory, which is made
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
fn principal(text: &str) -> Result<String, String> {
    let fields: Vec<&str> = text.splitn(6, ':').collect();
    match fields.as_slice() {
        ["arn", _, "iam", "", account, name]
            if account.len() == 12 && (name.starts_with("role/") || name.starts_with("user/")) =>
        {
            Ok(text.to_owned())
        }
        _ => Err("it must be the ARN of a role, arn:aws:iam::ACCOUNT:role/NAME".to_owned()),
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
        if policy::principal(config, &terms).contains(UNKNOWN_ACCOUNT) {
            complain(&format!(
                "the config does not say which account the replicator is in, so {UNKNOWN_ACCOUNT} stands for it: \
                 give --principal arn:aws:iam::ACCOUNT:role/NAME"
            ));
        }
        if let Some(side) = &self.side {
            documents.retain(|document| document.account == *side);
            if documents.is_empty() {
                bail!("nothing is needed in account {side}");
            }
        }
        if let Some(directory) = &self.out {
            save(directory, &documents)?;
        }
        match self.format {
            Format::Json => answer(&format!("{:#}", render::json(&documents))),
            Format::Cloudformation => each_account(&documents, "---\n", |documents| {
                format!("{:#}", render::cloudformation(documents))
            }),
            Format::Terraform => {
                each_account(&documents, "", |documents| render::terraform(documents).trim_end().to_owned())
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn each_account(documents: &[Document], between: &str, write: impl Fn(&[&Document]) -> String) {
    let accounts = render::by_account(documents);
    let several = accounts.len() > 1;
    for (account, documents) in accounts {
        let head = if several {
            format!("{between}# Account {account}; --side {account} prints this part alone.\n")
        } else {
            String::new()
        };
        answer(&format!("{head}{}", write(&documents)));
    }
}

fn save(directory: &PathBuf, documents: &[Document]) -> anyhow::Result<()> {
    let shown = directory.display();
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {shown}"))?;
    for document in documents {
        let path = directory.join(render::file_name(document, documents));
        let text = format!("{:#}\n", document.policy);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
