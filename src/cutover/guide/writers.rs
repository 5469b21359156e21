//! Keeping writers out of the side that they leave, and letting them in where they come.

use super::{Guide, Outcome, refuse};
use crate::config::Member;
use crate::cutover::deny::{ResourcePolicy, sid, statement};
use crate::cutover::rows::moved;
use crate::cutover::standing::Event;
use crate::cutover::{CutoverError, Refusal};
use crate::failure::{Class, Failure};

impl Guide<'_> {
    /// Sees that writers are stopped, or says how to stop them.
    pub(super) async fn stop(&mut self) -> Outcome {
        let (live, table) = (self.live().clone(), self.live().arn.to_string());
        let by_role = live.access.assume_role.as_ref().map(|role| role.role_arn.clone());
        let mut principals = self.request.principals.clone();
        if principals.is_empty() {
            principals.extend(by_role);
        }
        if self.request.attach_deny || self.standing.denies.contains(&live.name) {
            if principals.is_empty() {
                return refuse(
                    format!(
                        "who still writes to {table} for the cutover is not known, and must not be denied"
                    ),
                    "give the workers' role, and whoever runs this command: --principal arn:aws:iam::ACCOUNT:role/NAME, \
                     as often as needed",
                );
            }
            // Known before it is attached, so that it is taken away whatever happens in between.
            if !self.standing.denies.contains(&live.name) {
                let mut to = self.standing.clone();
                to.denies.insert(live.name.clone());
                self.write(to).await?;
            }
            let statement = statement(&self.standing.route, &table, &principals);
            let client = self.client(&live).await;
            let policy = ResourcePolicy { client: &client, table: &table };
            let attached = self.patiently(|| policy.attach(&statement, || self.still())).await;
            // Whoever has moved it meanwhile did not know of a request that was on its way, unless it is named there.
            let load = || self.standings.load(&self.standing.route);
            let now = self.patiently(load).await?;
            if now.revision != self.standing.revision {
                if !now.denies.contains(&live.name) {
                    let id = sid(&self.standing.route);
                    self.patiently(|| policy.detach(&id)).await?;
                }
                return Err(CutoverError::Another);
            }
            match attached {
                Err(CutoverError::Call(failure)) if failure.class == Class::Denied => {
                    // Somebody else adds it, and says so; what is found of it in the end is taken away all the same.
                    let mut to = self.standing.clone();
                    to.denies.remove(&live.name);
                    self.write(to).await?;
                    return refuse(
                        format!("the policy of {table} may not be changed: {failure}"),
                        format!(
                            "allow dynamodb:GetResourcePolicy, PutResourcePolicy and DeleteResourcePolicy to whoever reaches it; or \
                             add this statement to the policy yourself, and go on with --writers-stopped: {statement}"
                        ),
                    );
                }
                attached => attached?,
            }
        } else if !self.request.writers_stopped {
            if principals.is_empty() {
                principals.push("<this replicator>".to_owned());
            }
            let statement = statement(&self.standing.route, &table, &principals);
            return refuse(
                format!("writers may still write to {} ({table})", live.name),
                format!(
                    "stop them, and add this statement to the table's resource policy, or have it added by --attach-deny; \
                     writers that use PartiQL are denied by their own policies only: {statement}; then go on with \
                     --writers-stopped"
                ),
            );
        }
        let (id, key) = (format!("{:016x}", rand::random::<u64>()), self.request.marker_key.clone());
        self.step(Event::Stopped, |to| (to.marker, to.marker_key) = (Some(id), key)).await?;
        Ok(Ok(format!("writers to {} are stopped", live.name)))
    }

    /// That nobody has moved the cutover meanwhile.
    pub(super) async fn still(&self) -> Result<(), Failure> {
        let now = self.standings.load(&self.standing.route).await?;
        if now.revision == self.standing.revision { Ok(()) } else { Err(moved()) }
    }

    /// Why writers can no longer be taken to be stopped, when a statement that was attached is not there any more.
    pub(super) async fn lifted(&self, live: &Member) -> Result<Option<Refusal>, CutoverError> {
        if !self.standing.denies.contains(&live.name) {
            return Ok(None);
        }
        let (client, table) = (self.client(live).await, live.arn.to_string());
        let policy = ResourcePolicy { client: &client, table: &table };
        let id = sid(&self.standing.route);
        let lacks = self.patiently(|| policy.lacks(&id)).await?;
        Ok(lacks.then(|| Refusal {
            what: format!("the statement {id} is not in the policy of {table} any more"),
            remedy: "somebody changed the policy; the same command attaches the statement again".to_owned(),
        }))
    }

    /// Takes away what kept writers from where they write now.
    pub(super) async fn tidy(&mut self) -> Result<(), CutoverError> {
        let live = self.live().clone();
        let (client, table) = (self.client(&live).await, live.arn.to_string());
        let id = sid(&self.standing.route);
        if self.standing.denies.contains(&live.name) {
            let policy = ResourcePolicy { client: &client, table: &table };
            self.patiently(|| policy.detach(&id)).await?;
            let mut to = self.standing.clone();
            to.denies.remove(&live.name);
            self.write(to).await?;
            self.say(format!("the statement {id} is off the policy of {table}"));
        } else if self.standing.revision > 0 {
            let policy = ResourcePolicy { client: &client, table: &table };
            match policy.holds(&id).await {
                Ok(false) => {}
                Ok(true) => {
                    self.patiently(|| policy.detach(&id)).await?;
                    self.say(format!("the statement {id} is off the policy of {table}"));
                }
                Err(_) => {
                    let what = "if you added the statement";
                    self.say(format!("{what} {id} to the policy of {table}, take it out again"));
                }
            }
        }
        // After the statement, which may deny this, too.
        if let Some(id) = self.standing.marker.clone() {
            let marker = self.marker(id).await?;
            self.patiently(|| marker.remove(&client, &table)).await?;
            let mut to = self.standing.clone();
            (to.marker, to.marker_key) = (None, None);
            self.write(to).await?;
        }
        Ok(())
    }
}
