"""
A program written for the SQLAudit library, which runs unchanged: synchronous, and with its imports.

It creates no table for the trail: creating those of tracked models does.
"""

from collections.abc import Iterator

from sqlalchemy import ForeignKey, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqlaudit.config import SQLAuditConfig, set_config
from sqlaudit.decorators import track_table
from sqlaudit.hooks import register_hooks
from sqlaudit.retrieval import get_resource_changes

engine = create_engine("sqlite:///:memory:", connect_args={"check_same_thread": False})
SessionLocal = sessionmaker(bind=engine, autoflush=False)


def get_db() -> Iterator[Session]:
    db = SessionLocal()
    try:
        yield db
    finally:
        db.close()


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    user_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)


@track_table(tracked_fields=["name", "email", "user_id"], table_label="Customer")
class Customer(Base):
    __tablename__ = "customers"

    customer_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    name: Mapped[str]
    email: Mapped[str]
    user_id: Mapped[int] = mapped_column(ForeignKey("users.user_id"))


# The user at work. Its id is read anew for every flush, and isn't known before the first.
operator = User()

set_config(
    SQLAuditConfig(
        session_factory=get_db,
        user_model=User,
        user_model_user_id_field="user_id",
        get_user_id_callback=lambda: operator.user_id,
    )
)


def main() -> None:
    Base.metadata.create_all(engine)
    register_hooks()

    with next(get_db()) as session:
        session.add(operator)
        session.commit()

        for name, email in [("Ada Byron", "ada@example.com"), ("Grace Murray", "grace@example.com")]:
            session.add(Customer(name=name, email=email, user_id=operator.user_id))
            session.commit()

        grace = session.scalars(select(Customer).filter_by(email="grace@example.com")).one()
        grace.name = "Grace Hopper"
        session.commit()

        changes = get_resource_changes(
            model_class=Customer,
            session=session,
            filter_resource_ids=["1", "2"],
            sort_by="timestamp",
            sort_direction="desc",
        )
        for change in changes:
            print(
                f"FIELD: '{change.field_name}' CHANGED AT {change.timestamp} "
                f"TO {change.new_value} (OLD: {change.old_value}) BY USER ID {change.changed_by}"
            )


if __name__ == "__main__":
    main()
