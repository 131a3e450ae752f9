"""x."""

from decimal import Decimal
from sqlalchemy import ForeignKey, Numeric
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlaudit import *
from witness import watch_rows, witnessed, told


async def test_x(engine, maker):
    class Base(DeclarativeBase):
        pass

    @track_table()
    class Customer(Base):
        __tablename__ = "customer"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        balance: Mapped[Decimal | None] = mapped_column(Numeric(10, 2))

    set_config(SQLAuditConfig(session_factory=maker))
    register_hooks(maker)
    async with engine.begin() as c:
        await c.run_sync(Base.metadata.create_all)
        await c.run_sync(watch_rows, Customer.__table__)
    async with maker() as s:
        with audit_context(user_id=1):
            x = Customer(name="a")
            s.add(x)
            await s.commit()
            x.name = "b"
            await s.commit()
            x.balance = Decimal("1.5")
            x.name = "b"
            await s.commit()
            await s.delete(x)
            await s.commit()
        ch = await get_resource_changes(Customer, session=s, sort_direction="asc")
        w = await s.run_sync(lambda s: witnessed(s.connection(), Customer.__table__))
        assert told(ch) == w
        assert [c.changed_by for c in ch] == ["1"] * len(ch)
        assert len(w) == 4
