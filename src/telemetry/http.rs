//! `/metrics`, `/healthz`, `/readyz` and `/api/status`, on the configured address.

use crate::telemetry::board::{Board, Picture};
use crate::telemetry::metrics::Metrics;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What the pages are made from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Admin {
    /// What is going on.
    pub board: Board,
    /// The metrics.
    pub metrics: Metrics,
    /// Without progress for this long, the work stands still.
    pub stall_after: Duration,
}

/// Serves until `stop`; requests under way are answered.
pub async fn serve(listener: TcpListener, admin: Admin, stop: CancellationToken) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .route("/api/status", get(status))
        .with_state(admin);
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!(%error, "metrics and health are not served any more");
    }
}

impl Admin {
    fn picture(&self) -> Picture {
        let picture = self.board.picture(self.stall_after);
        self.metrics.healthy.set(if picture.problems.is_empty() { 1.0 } else { 0.0 });
        for (route, peer, pause) in self.board.pauses() {
            self.metrics.paused.with_label_values(&[&route, &peer]).set(i64::from(pause.is_some()));
        }
        for (route, shards) in &picture.routes {
            let oldest = shards.values().map(|shard| shard.unsaved_seconds).max().unwrap_or(0);
            #[expect(clippy::cast_precision_loss, reason = "seconds")]
            self.metrics.checkpoint_age.with_label_values(&[route]).set(oldest as f64);
        }
        picture
    }
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    admin.picture();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], admin.metrics.text())
}

/// Fails when the work stops, not only when the process does.
async fn health(State(admin): State<Admin>) -> impl IntoResponse {
    let Picture { problems, paused, .. } = admin.picture();
    if problems.is_empty() {
        let paused = paused.iter().map(|line| format!("{line}\n"));
        (StatusCode::OK, "ok\n".to_owned() + &paused.collect::<String>())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, problems.join("\n") + "\n")
    }
}

/// Fails until every route has been listed once, and while draining.
async fn ready(State(admin): State<Admin>) -> impl IntoResponse {
    let picture = admin.picture();
    if picture.ready {
        (StatusCode::OK, "ready\n")
    } else if picture.draining {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting\n")
    }
}

async fn status(State(admin): State<Admin>) -> impl IntoResponse {
    Json(admin.picture())
}
