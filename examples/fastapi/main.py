"""The smallest app that sells with tallyhook, in FastAPI."""

from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from pydantic import BaseModel

from model import summarize
from tallyhook import (
    AlreadySubscribedError,
    ConflictError,
    HeldCredits,
    InsufficientCreditsError,
    Message,
    Tallyhook,
    WebhookVerificationError,
    verify_webhook,
)

tallyhook = Tallyhook()  # TALLYHOOK_URL, APP_API_TOKEN
app = FastAPI()

# Your app has a database. The messages' ids are a table with a unique key, written with what a message does.
projects: dict[str, list[str]] = {}
accounts: dict[str, dict] = {}
welcomed: list[str] = []
processed: set[str] = set()


def current_user(x_user: Annotated[str | None, Header()] = None) -> str:
    """Your app takes the user from its session."""
    if not x_user:
        raise HTTPException(401)
    return x_user


User = Annotated[str, Depends(current_user)]


class Project(BaseModel):
    name: str


class Export(BaseModel):
    id: str


class Text(BaseModel):
    id: str
    text: str


@app.post("/webhooks/tallyhook", status_code=204)
async def webhook(request: Request) -> Response:
    try:
        id, message = verify_webhook(await request.body(), request.headers)  # PROVISION_SECRET
    except WebhookVerificationError as error:
        return JSONResponse({"error": error.code}, 400)
    if id not in processed:
        handle(message)
        processed.add(id)
    return Response(status_code=204)


def handle(message: Message) -> None:
    data = message["data"]
    known = accounts.get(data["user_id"])
    if known is None or data["version"] >= known["version"]:
        accounts[data["user_id"]] = data
    if message["type"] == "payment.confirmed":
        welcomed.append(data["user_id"])  # set the user up, send an e-mail


# The routes that call tallyhook are `def`, not `async def`: FastAPI runs them in threads.
@app.post("/signup")
def signup(user: User) -> dict:
    account = tallyhook.create_user(user)
    return {"tier": account["tier"], "credits": account["credits"]}


@app.post("/projects", status_code=201)
def add_project(user: User, project: Project) -> dict:
    mine = projects.setdefault(user, [])
    check = tallyhook.check(user, feature="projects", used=len(mine))
    if not check["allowed"]:
        return JSONResponse({"error": "limit_reached", "limit": check["limit"], "upgrade": "/upgrade"}, 402)
    mine.append(project.name)
    return {"projects": len(mine)}


@app.post("/exports")
def export(user: User, export: Export) -> dict:
    return {"credits": tallyhook.consume(user, 10, key=f"export-{export.id}")["credits"]}


@app.post("/summaries")
def summary(user: User, text: Text) -> dict:
    def job(hold: HeldCredits) -> str:
        summary, hold.used = summarize(text.text)
        return summary

    return {"summary": tallyhook.with_hold(user, 200, job, key=f"summary-{text.id}")}


@app.get("/upgrade")
def upgrade(user: User) -> RedirectResponse:
    try:
        url = tallyhook.checkout(user, plan="pro")["url"]
    except AlreadySubscribedError as error:
        if not error.portal_url:
            raise
        url = error.portal_url
    return RedirectResponse(url, 303)


@app.get("/billing")
def billing(user: User) -> RedirectResponse:
    try:
        return RedirectResponse(tallyhook.portal(user)["url"], 303)
    except ConflictError as error:
        if error.code != "no_customer":
            raise
        return RedirectResponse("/upgrade", 303)  # the user bought nothing yet


@app.get("/me")
def me(user: User) -> dict:
    account = accounts.get(user, {})
    return {
        "tier": account.get("tier"),
        "credits": account.get("credits"),
        "welcomes": welcomed.count(user),
    }


@app.exception_handler(InsufficientCreditsError)
def too_few_credits(request: Request, error: InsufficientCreditsError) -> JSONResponse:
    return JSONResponse({"error": error.code, "upgrade": "/upgrade"}, 402)
