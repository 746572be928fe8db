//! E. An onboarding portal: a customer pays, is set up by the app, and gets a password.

use lambda_http::Body;
use serde_json::{Value, json};
use tallyhook_core::signature::{Secret, sign};

use crate::app_messages::{received, types};
use crate::provision::{App, with_app};
use crate::support::{call, now, sample};

const SESSION: &str = "cs_test_a1TallyHook0001";

#[tokio::test]
async fn a_customer_pays_is_set_up_gets_an_e_mail_and_a_password() {
    let (app, url) = App::start().await;
    let world = with_app(&url).await;
    let state = async || {
        let (status, setup) = world.setup_status(SESSION).await;
        assert_eq!(status, 200, "{setup}");
        let word = |name: &str| setup[name].as_str().unwrap().to_owned();
        ["payment_state", "provisioning_state", "password_state", "next_action"].map(word).join(" ")
    };
    let report = async |path: &str, body: Value| assert_eq!(world.app("POST", path, body, None).await.0, 200);

    // Before the webhook, the page waits.
    assert_eq!(state().await, "confirming not_started not_sent wait_payment");

    // A bad signature is refused on every alias of the route; a good one is taken.
    let mut paid = sample("checkout.session.completed", "user_123");
    let metadata = json!({"client_id": "user_123", "plan_code": "pro", "customer_reference": "PO-7"});
    paid["data"]["object"]["metadata"] = metadata;
    let body = paid.to_string();
    let signed = sign(body.as_bytes(), &Secret::new(crate::support::SECRET).unwrap(), now());
    for path in ["/api/webhook/stripe", "/api/webhooks/stripe", "/webhooks/stripe/"] {
        for (signature, status) in [("t=1,v1=00", 400), (signed.as_str(), 200)] {
            let header = Some(("stripe-signature", signature));
            assert_eq!(world.call(&call("POST", path, header, &body, false)).await.0, status, "{path}");
        }
    }
    world.drain().await;
    assert_eq!(state().await, "paid queued not_sent wait_provisioning");
    let (_, setup) = world.setup_status(SESSION).await;
    assert_eq!(setup["reference"], "PO-7");

    // The app is called once, with a job that names the session.
    let job = world.event("job#provision#user_123").await.unwrap();
    assert_eq!(job["session"], SESSION);
    assert_eq!(types(&received(&world, &app).await), ["payment.confirmed"]);

    // It reports what it does.
    report("/portal/provisioning", json!({"user_id": "user_123", "state": "PROVISIONING_STARTED"})).await;
    assert_eq!(state().await, "paid running not_sent wait_provisioning");
    report("/portal/provisioning", json!({"user_id": "user_123", "state": "WELCOME_EMAIL_SENT"})).await;
    report("/portal/provisioning", json!({"user_id": "user_123", "state": "PROVISIONING_COMPLETED"})).await;
    assert_eq!(state().await, "paid completed not_sent set_password");
    assert_eq!(world.setup_status(SESSION).await.1["welcome_email_sent"], true);
    report("/portal/password-set", json!({"user_id": "user_123"})).await;
    assert_eq!(state().await, "paid completed set go_to_dashboard");

    // The page that polls all this has the banner with reference and support address.
    let page = world.visit(None, "GET", &format!("/portal/status?session_id={SESSION}"), Body::Empty).await;
    let html = String::from_utf8(page.body().to_vec()).unwrap();
    for part in ["data-poll=\"5000\"", "data-patience=\"180000\"", "id=\"banner\"", "id=\"reference\""] {
        assert!(html.contains(part), "{part}");
    }
    assert!(html.contains("Refresh status"));
}

#[tokio::test]
async fn the_secrets_of_test_and_live_mode_are_both_accepted_and_do_not_mix() {
    let world = crate::support::World::with(&[
        ("STRIPE_WEBHOOK_SECRET", ""),
        ("STRIPE_WEBHOOK_SECRET_TEST", "whsec_of_test_mode"),
        ("STRIPE_WEBHOOK_SECRET_LIVE", "whsec_of_live_mode"),
        ("STRIPE_LIVEMODE", "false"),
    ])
    .await;
    let post = async |id: &str, secret: &str, livemode: bool| {
        let mut event = crate::support::pack(id, "user_1", 1);
        event["livemode"] = json!(livemode);
        let body = event.to_string();
        let signature = sign(body.as_bytes(), &Secret::new(secret).unwrap(), now());
        assert_eq!(world.post(body.as_bytes(), Some(&signature)).await.0, 200, "{id}");
        world.drain().await;
        world.event(&format!("evt_{id}")).await.unwrap()["outcome"].clone()
    };
    assert_eq!(post("test", "whsec_of_test_mode", false).await, "processed");
    assert_eq!(post("live", "whsec_of_live_mode", true).await, "ignored");
    assert_eq!(post("mixed", "whsec_of_live_mode", false).await, "ignored");
    assert_eq!(world.account("user_1").await["credits"], 1000);
}
